"""SCHEMA: how the tables of the outbox came to be, one numbered SQL file a step."""

from meter_migrations._runner import (
    APPLICATION_ID,
    LATEST,
    ForeignFileError,
    NewerSchemaError,
    migrate,
    schema_version,
)

__all__ = [
    "APPLICATION_ID",
    "LATEST",
    "ForeignFileError",
    "NewerSchemaError",
    "migrate",
    "schema_version",
]
