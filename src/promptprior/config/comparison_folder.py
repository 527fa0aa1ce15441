"""The files of a folder that `promptprior compare` writes; docs/artifact.md says what is in each."""

RESULTS = "results.jsonl"
PAGE = "report.html"
PLAN = "plan.yaml"
WANTED = "wanted.json"
ANSWERS = "answers.jsonl"
SIMILARITY = "similarity.json"
