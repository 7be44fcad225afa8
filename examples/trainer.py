"""hesstune in transformers' Trainer: the lines marked + are all that is added.

A BERT of one layer is made here, so that the example runs without a download; use your own model. Of the
texts of the second class, 45 % are labelled as the first, at a known rate.
"""

import sys
import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import hesstune as ht  # +
from hesstune.integrations import RobustTrainerCallback, consistent_loss  # +

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
torch.manual_seed(seed)
# A text is 16 words, 40 % of them from the ten words of its class.
clean = torch.randint(2, (1600,))
own = 5 + 10 * clean[:, None] + torch.randint(10, (1600, 16))
ids = torch.where(torch.rand(1600, 16) < 0.4, own, torch.randint(5, 25, (1600, 16)))
F = ht.NoiseMatrix.from_array([[1.0, 0.0], [0.45, 0.55]])  # +
labels = torch.from_numpy(F.corrupt(clean.numpy(), seed=seed))
dataset = [{"input_ids": i, "labels": y} for i, y in zip(ids[:600], labels[:600], strict=True)]

for name in ("plain", "robust"):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=25, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)  # yours: AutoModel….from_pretrained(…)
    folder = tempfile.mkdtemp()
    arguments = TrainingArguments(
        folder, max_steps=80, learning_rate=3e-3, per_device_train_batch_size=64, use_cpu=True, seed=seed,
        save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    added = {}
    if name == "robust":
        added = {
            "compute_loss_func": consistent_loss(F),  # + the consistent loss
            "callbacks": [RobustTrainerCallback({"classifier.*": 2.0, "*": 2.0})],  # + the constraint
        }
    trainer = Trainer(model, arguments, train_dataset=dataset, **added)
    trainer.train()  # resume_from_checkpoint=True keeps the pretrained weights as the reference
    with torch.no_grad():
        accuracy = (model.eval()(input_ids=ids[600:]).logits.argmax(1) == clean[600:]).float().mean()
    print(f"{name}: test accuracy on true labels {accuracy:.3f}")

kept = ht.Reference.load(f"{folder}/reference.safetensors")
print("largest distance of a layer:", max(kept.distances(model).values()))
