"""SFT: every client fine-tunes its own adapter on its own data; nothing is exchanged."""
