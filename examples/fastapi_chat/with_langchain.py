"""The same chat with a LangChain chain behind it: every token arrives when it is generated.

python examples/fastapi_chat/with_langchain.py [--url http://localhost:8080] [--port 8000]

Needs `pip install "llamastream[server,fastapi,langchain]" uvicorn`. Without --url the demo engine is started.
"""

import sys

from app import PAGE, Conversation, serve
from fastapi import FastAPI, Response
from fastapi.responses import FileResponse

from llamastream.integrations.fastapi import sse_response

try:
    from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

    from llamastream.integrations.langchain import ChatLlamaStream
except ImportError as error:
    sys.exit(f'error: {error}: pip install "llamastream[server,fastapi,langchain]" uvicorn')

PROMPT = ChatPromptTemplate.from_messages([("system", "You are a helpful assistant."), MessagesPlaceholder("messages")])


def create_app(url: str) -> FastAPI:
    chain = PROMPT | ChatLlamaStream(base_url=url, temperature=0, max_tokens=2000)
    app = FastAPI(title="llamastream chat with LangChain")

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.post("/chat")
    async def chat(conversation: Conversation) -> Response:
        # astream, not invoke (which has nothing to stream) and not stream (which would block the event loop)
        return sse_response(chain.astream({"messages": [message.model_dump() for message in conversation.messages]}))

    return app


if __name__ == "__main__":
    serve(create_app, "A chat in the browser, with LangChain.")
