"""The process that answers Prometheus."""
