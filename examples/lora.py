"""hesstune with peft's LoRA in a plain loop: the lines marked + are all that is added.

A BERT of one layer is made here, so that the example runs without a download; use your own model.
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

import hesstune as ht  # +
from hesstune.integrations.peft import AdapterConstraint, distances, measure_adapters  # +

torch.manual_seed(0)
config = BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
)
ids = torch.randint(5, 20, (128, 12))
clean = (ids > 12).sum(1).gt(6).long()
F = ht.NoiseMatrix.symmetric(2, 0.2)  # +
labels = torch.from_numpy(F.corrupt(clean.numpy(), seed=0))

lora = LoraConfig(r=4, target_modules=["query", "value", "dense"], modules_to_save=["classifier"])
model = get_peft_model(BertForSequenceClassification(config), lora)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
constraint = AdapterConstraint(model, {"classifier.*": 1.0, "*": 0.2})  # + names as without adapters
loss = ht.ConsistentLoss(F)  # + instead of cross-entropy
for step in range(40):
    rows = torch.arange(32) + 32 * (step % 4)
    optimizer.zero_grad()
    loss(model(input_ids=ids[rows]).logits, labels[rows]).backward()
    optimizer.step()
    constraint.project_()  # + after every step

print("largest distance of a layer:", max(distances(model).values()))
m = measure_adapters(model, [({"input_ids": ids[:16]}, labels[:16])], layers=["*query*", "classifier*"])
print(f"Hessian distance measure of these layers: {m.hessian_distance(n=128):.3f}")
