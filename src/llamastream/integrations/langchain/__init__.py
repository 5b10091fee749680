"""LangChain's chat model on llama-server: `ChatLlamaStream`.

from llamastream.integrations.langchain import ChatLlamaStream

model = ChatLlamaStream(base_url="http://localhost:8080", temperature=0)
for chunk in model.stream("Tell me a story."):
    print(chunk.text, end="", flush=True)
"""

from llamastream.integrations.extras import need

need("langchain_core", "langchain")

from llamastream.integrations.langchain.model import ChatLlamaStream  # noqa: E402  # only once the library is there

__all__ = ["ChatLlamaStream"]
