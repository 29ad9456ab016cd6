"""The k-sparse step: which latents are active, and products over those alone, in C where it compiles."""
