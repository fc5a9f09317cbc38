"""The tables of a service's state. Times are seconds since 1970; texts that hold data are JSON.

A job's number is its place in the order of admission, and what its events and bytes hang on: they go when it goes.
Bytes that are small are in `payloads`, the others in files that the job's row names.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

VERSION = 1
METADATA = MetaData()

about = Table("about", METADATA, Column("version", Integer, primary_key=True))

keys = Table(
    "keys",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("weight", Float, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("revoked_s", Float),
)

jobs = Table(
    "jobs",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("forwards", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("streams", Boolean, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("started_s", Float),
    Column("ended_s", Float),
    Column("lease_s", Float),
    Column("fence", Integer, nullable=False, default=0),
    Column("attempts", Integer, nullable=False, default=0),
    Column("suspect", Boolean, nullable=False, default=False),
    Column("cancelled", Boolean, nullable=False, default=False),
    Column("events", Integer, nullable=False, default=1),
    Column("sources", Integer, nullable=False, default=0),
    Column("compute_s", Float, nullable=False, default=0.0),
    Column("body_bytes", BigInteger, nullable=False),
    Column("result_bytes", BigInteger, nullable=False, default=0),
    Column("body_digest", Text, nullable=False),
    Column("body_file", Text),
    Column("result_file", Text),
    Column("answer", Integer),
    Column("media", Text),
    Column("idempotency", Text),
    Column("tensors", Text, nullable=False),
    Column("verdict", LargeBinary, nullable=False),
    UniqueConstraint("owner", "idempotency"),
    Index("jobs_of_owner", "owner", "number"),
    Index("jobs_by_status", "status", "owner"),
    Index("jobs_bytes", "owner", "status", "body_bytes", "result_bytes"),
)

payloads = Table(
    "payloads",
    METADATA,
    Column("job", ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("body", LargeBinary),
    Column("result", LargeBinary),
)

events = Table(
    "events",
    METADATA,
    Column("job", ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("at_s", Float, nullable=False),
)

tensors = Table(
    "tensors",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("dtype", Text, nullable=False),
    Column("shape", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    Column("file", Text, nullable=False),
)

usage = Table(
    "usage",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("compute_s", Float, nullable=False),
)
