"""The log process: writes what processes without rights have for the log."""
