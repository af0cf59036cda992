"""The coordinator's front door over HTTP: a JSON API, a dashboard, metrics."""
