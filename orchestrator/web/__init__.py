"""The dashboard: pages, a JSON API and a live stream, read from the run database."""

from orchestrator.web.app import create_app
from orchestrator.web.settings import WebSettings

__all__ = ["WebSettings", "create_app"]
