"""Runs a plan over a network: workers, the coordinator, certificates, the HTTP API, forecasts."""
