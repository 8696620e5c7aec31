"""Public sets: LLaVA-Instruct-158K, ChatbotIT and Visual Storytelling, for `--public NAME`. See README.md."""
