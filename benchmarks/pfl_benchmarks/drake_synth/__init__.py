"""The embedded benchmark `drake-synth`: ten clients, forty tasks and seven unseen ones, drawn by the project itself."""
