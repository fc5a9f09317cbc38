"""Every error that Glassworks raises on purpose, as one tree.

    GlassworksError
    ├── GraphError            what was written in a block cannot be
    │   ├── UnknownSite       no such place in this model          (also AttributeError)
    │   ├── UnknownOperation  not in the table of operations       (also TypeError)
    │   ├── OrderError        used before it can exist
    │   ├── WriteError        a write that cannot be done exactly       (also ValueError)
    │   ├── ScopeError        outside its block, invoke or steps
    │   ├── NotSaved          read after the block, without save
    │   └── NotTaken          saved in a branch that was not taken  (also KeyError)
    ├── ModelError            a model that cannot be loaded, wrapped or understood
    ├── InputError            a prompt or an argument that cannot be used (also ValueError)
    │   └── BudgetExceeded    it needs more memory than a budget has
    └── RemoteError           a service said no, or could not be reached
        ├── WireError         bytes that are not a message of ours  (also ValueError)
        ├── LimitExceeded     over a limit of the service
        │   └── QuotaExceeded over what one key may have at once or a day; later it may be had
        ├── Cancelled         a job was called off
        └── Unauthorized      no key, or not a valid one

An error that comes out of torch or of a model keeps its own type; the line of the user's that led to it is
added as a note (PEP 678). Each message says what was expected, what was given and what to do.
"""


class GlassworksError(Exception):
    """The root: `except gw.GlassworksError` catches all of ours."""


class GraphError(GlassworksError):
    """What was written in a block cannot be."""


class UnknownSite(GraphError, AttributeError):
    """The model has no site of that name; the message names the nearest, or the reason it is absent."""


class UnknownOperation(GraphError, TypeError):
    """The operation is not in the table of permitted operations; the message names the nearest."""


class OrderError(GraphError):
    """A value is used at a place in the forward pass that comes before the value exists."""


class WriteError(GraphError, ValueError):
    """A write that cannot be done exactly, is never dropped: it is refused with what to write instead."""


class ScopeError(GraphError):
    """A value or a site was used outside the block, invoke or steps that it belongs to."""


class NotSaved(GraphError):
    """A value was read after its block although it was not saved."""


class NotTaken(GraphError, KeyError):
    """A value was saved in a branch of `gw.cond` that was not taken."""

    __str__ = Exception.__str__


class ModelError(GlassworksError):
    """A model cannot be loaded, wrapped or understood."""


class InputError(GlassworksError, ValueError):
    """A prompt or an argument cannot be used."""


class BudgetExceeded(InputError):
    """Something needs more memory than the budget that it was given; the message says both sizes."""


class RemoteError(GlassworksError):
    """A service refused, failed or could not be reached."""


class WireError(RemoteError, ValueError):
    """Bytes that are not a message of ours; the message names the field or the byte range."""


class LimitExceeded(RemoteError):
    """Over a limit of the service; the message names the limit and both figures."""


class QuotaExceeded(LimitExceeded):
    """Over what one key may have at once, or in a day: the same request may be let in later."""


class Cancelled(RemoteError):
    """A job was called off before it was done."""


class Unauthorized(RemoteError):
    """No key was given, or one that the service does not know."""
