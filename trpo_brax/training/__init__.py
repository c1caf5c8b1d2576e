"""The host loop: sessions of chunks, periodic evaluation, conclusion."""
