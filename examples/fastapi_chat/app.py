"""A chat in the browser, on FastAPI. Open http://127.0.0.1:8000 once it runs.

python examples/fastapi_chat/app.py [--url http://localhost:8080] [--port 8000]

Needs `pip install "llamastream[server,fastapi]" uvicorn`. Without --url the demo engine is started.
"""

import argparse
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from llamastream import AsyncStreamingClient, LlamaStreamError, launch

try:
    import uvicorn
    from fastapi import FastAPI, Response
    from fastapi.responses import FileResponse
    from pydantic import BaseModel, Field

    from llamastream.integrations.fastapi import sse_response
except ImportError as error:
    sys.exit(f'error: {error}: pip install "llamastream[server,fastapi]" uvicorn')

PAGE = Path(__file__).with_name("page.html")


class Message(BaseModel):
    role: Literal["user", "assistant"]
    content: str = Field(max_length=20_000)


class Conversation(BaseModel):
    messages: list[Message] = Field(min_length=1, max_length=100)


def create_app(url: str) -> FastAPI:
    client = AsyncStreamingClient(url, temperature=0)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(title="llamastream chat", lifespan=lifespan)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.post("/chat")
    async def chat(conversation: Conversation) -> Response:
        messages = [message.model_dump() for message in conversation.messages]
        return sse_response(client.stream_chat(messages, max_tokens=2000))

    return app


def serve(create: Callable[[str], FastAPI], description: str) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--url", help="a running llama-server; without it the demo engine is started")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    if not 0 <= arguments.port <= 65535:
        parser.error(f"--port must be a number from 0 (any free one) to 65535, not {arguments.port}")
    try:
        if arguments.url:
            uvicorn.run(create(arguments.url), port=arguments.port)
        else:
            with launch() as engine:
                uvicorn.run(create(engine.url), port=arguments.port)
    except LlamaStreamError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    serve(create_app, "A chat in the browser.")
