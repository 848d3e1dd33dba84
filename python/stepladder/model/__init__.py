"""The model's surface: loading, levels, requests, streams, chats, and the proof that levels change nothing."""
