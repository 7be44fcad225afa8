#!/usr/bin/env bash
# label-studio-sdk 2.1.2: LabelInterface.validate_task raises TypeError for every task that has predictions.
#
# Behaviour: a task with the key "predictions", which Label Studio imports, cannot be validated: validate_task
# calls validate_prediction() without the prediction. The same task without the key is valid, and
# validate_prediction accepts its prediction.
#
# Output seen:
#   without predictions: True
#   its prediction: True
#   with predictions: TypeError: LabelInterface.validate_prediction() missing 1 required positional argument: 'prediction'
#
# The script exits with 0 as long as the behaviour is that, and with 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "label-studio-sdk==${SDK_VERSION:-2.1.2}"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from label_studio_sdk.label_interface import LabelInterface

interface = LabelInterface(
    '<View><Text name="text" value="$text"/><Choices name="label" toName="text">'
    '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
)
result = {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": ["cat"]}}
task = {"data": {"text": "a"}, "predictions": [{"model_version": "1", "score": 0.9, "result": [result]}]}
plain = interface.validate_task({"data": task["data"]})
prediction = interface.validate_prediction(task["predictions"][0])
try:
    whole = str(interface.validate_task(task))
except TypeError as error:
    whole = f"TypeError: {error}"
print("without predictions:", plain)
print("its prediction:", prediction)
print("with predictions:", whole)
sys.exit(not (plain and prediction and whole.startswith("TypeError")))
PYTHON
