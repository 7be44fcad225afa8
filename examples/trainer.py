"""hesstune in transformers' Trainer: the lines marked + are all that is added.

A BERT of one layer is made here, so that the example runs without a download; use your own model.
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import hesstune as ht  # +
from hesstune.constraints import StartingPointPenalty
from hesstune.integrations import (  # +
    PenaltyMixin,
    PretrainedDecayCallback,
    RobustTrainerCallback,
    consistent_loss,
    kept_reference,
)

torch.manual_seed(0)
folder = tempfile.mkdtemp()
config = BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
)
model = BertForSequenceClassification(config)  # yours: AutoModel….from_pretrained(…)
ids = torch.randint(5, 20, (128, 12))
clean = (ids > 12).sum(1).gt(6).long()
F = ht.NoiseMatrix.symmetric(2, 0.2)  # +
labels = torch.from_numpy(F.corrupt(clean.numpy(), seed=0))
dataset = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
arguments = TrainingArguments(folder, max_steps=20, use_cpu=True, report_to=[], disable_tqdm=True)

trainer = Trainer(
    model,
    arguments,
    train_dataset=dataset,
    compute_loss_func=consistent_loss(F),  # + the consistent loss
    callbacks=[RobustTrainerCallback({"classifier.*": 1.0, "*": 0.1})],  # + each layer inside its ball
)
trainer.train()  # resume_from_checkpoint=True keeps the pretrained weights as the reference
kept = ht.Reference.load(f"{folder}/reference.safetensors")
print("largest distance of a layer:", max(kept.distances(model).values()))


# Weight decay towards the pretrained weights instead of a constraint, decoupled as AdamW's own is:
model = BertForSequenceClassification(config)
decay = PretrainedDecayCallback(0.1)  # +
Trainer(model, arguments, train_dataset=dataset, callbacks=[decay]).train()
print("largest distance of a layer:", max(decay.reference.distances(model).values()))


# The same as a penalty in the loss:
class Penalised(PenaltyMixin, Trainer):  # +
    """A Trainer whose loss has a penalty."""


model = BertForSequenceClassification(config)
reference = kept_reference(model, f"{folder}/penalty")  # + taken now, read again in a script that resumes
penalty = StartingPointPenalty(model, reference, "l2", alpha=0.1)  # +
Penalised(model, arguments, train_dataset=dataset, penalty=penalty).train()
print("largest distance of a layer:", max(reference.distances(model).values()))
