"""What a model is: its native sites by recorded runs, its standard sites by structure and by numbers, its text.

Nothing is imported here, because `text` needs no torch and all else does. `anatomy` builds the site table, `scan` that
of any module, `identity` checks it.
"""
