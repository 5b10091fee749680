"""The project's settings: defaults, overridden by the environment (LLM_BASE_URL, LLM_MODEL, ...) and a .env file."""

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    llm_base_url: str | list[str] = "http://localhost:8080"  # a list: another server takes over when one fails
    llm_model: str = "demo"
    llm_temperature: float = 0.0
    llm_max_tokens: int = 300
    llm_api_key: str | None = None


settings = Settings()
