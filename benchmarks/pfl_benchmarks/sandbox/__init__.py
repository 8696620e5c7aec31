"""Generated code, run where it can do no harm, and HumanEval's metric, which needs that. See README.md."""
