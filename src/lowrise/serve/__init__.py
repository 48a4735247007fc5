"""A small HTTP server for clients of the OpenAI format."""
