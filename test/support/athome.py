"""CrewAI without telemetry, traces and questions."""

from __future__ import annotations

AT_HOME = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "CREWAI_TESTING": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
}
"""For the environment; CrewAI reads it when it is imported."""
