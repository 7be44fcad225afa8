#!/usr/bin/env bash
# argilla 2.8.0: the nested export of records loses the status of responses.
#
# Behaviour: `Record.to_dict()`, and so `records.to_list()` and `records.to_json()`, write the value and the user of
# each response and leave its status out. A response that was discarded, or that is a draft, looks like one that was
# submitted. The flat export, `records.to_list(flatten=True)`, has the status in `QUESTION.responses.status`.
#
# Condition: any record with a response whose status is not `submitted`; no server is needed to see it.
#
# Output seen:
#   argilla 2.8.0
#   nested: [{'value': 'pos', 'user_id': '1'}, {'value': 'neg', 'user_id': '2'}]
#   flat: ['pos', 'neg'] ['submitted', 'discarded']
#
# The script exits with 0 as long as the behaviour is that, and with 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "argilla==${ARGILLA_VERSION:-2.8.0}" requests pillow
HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import sys
import uuid

import argilla
from argilla.records._io import GenericIO

users = [uuid.UUID(int=1), uuid.UUID(int=2)]
responses = [
    argilla.Response("q", "pos", user_id=users[0], status="submitted"),
    argilla.Response("q", "neg", user_id=users[1], status="discarded"),
]
record = argilla.Record(id="a", fields={"text": "good"}, responses=responses)
nested = record.to_dict()["responses"]["q"]
flat = GenericIO.to_list([record], flatten=True)[0]
print("argilla", argilla.__version__)
print("nested:", [{**one, "user_id": one["user_id"][-1]} for one in nested])
print("flat:", flat["q.responses"], flat["q.responses.status"])
lost = all("status" not in one for one in nested) and flat["q.responses.status"] == ["submitted", "discarded"]
sys.exit(not lost)
PYTHON
