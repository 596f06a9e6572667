"""The paper: encoder, decoder, latents, likelihood. Imports torch and itself only."""
