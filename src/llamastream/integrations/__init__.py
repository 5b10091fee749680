"""llamastream at home in other libraries. Each integration is imported by itself, and needs the extra of its name:
`llamastream.integrations.langchain` needs `pip install 'llamastream[langchain]'`, and so on.

They stand on public names of llamastream only, so that they show what anybody could build.
"""
