"""hesstune with peft's LoRA in a plain loop: the lines marked + are all that is added.

A BERT of one layer is made here, so that the example runs without a download; use your own model. Of the
texts of the second class, 45 % are labelled as the first, at a known rate.
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

import hesstune as ht  # +
from hesstune.integrations.peft import AdapterConstraint, distances, measure_adapters  # +

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
torch.manual_seed(seed)
# A text is 16 words, 40 % of them from the ten words of its class.
clean = torch.randint(2, (1600,))
own = 5 + 10 * clean[:, None] + torch.randint(10, (1600, 16))
ids = torch.where(torch.rand(1600, 16) < 0.4, own, torch.randint(5, 25, (1600, 16)))
F = ht.NoiseMatrix.from_array([[1.0, 0.0], [0.45, 0.55]])  # +
labels = torch.from_numpy(F.corrupt(clean.numpy(), seed=seed))

for name in ("plain", "robust"):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=25, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules=["query", "value", "dense"], modules_to_save=["classifier"])
    model = get_peft_model(BertForSequenceClassification(config), lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    loss = torch.nn.CrossEntropyLoss()
    if name == "robust":
        loss = ht.ConsistentLoss(F)  # + instead of cross-entropy
        constraint = AdapterConstraint(model, {"classifier.*": 4.0, "*": 4.0})  # + names as without adapters
    for _ in range(120):
        rows = torch.randint(600, (64,))
        optimizer.zero_grad()
        loss(model(input_ids=ids[rows]).logits, labels[rows]).backward()
        optimizer.step()
        if name == "robust":
            constraint.project_()  # + after every step
    with torch.no_grad():
        accuracy = (model(input_ids=ids[600:]).logits.argmax(1) == clean[600:]).float().mean()
    print(f"{name}: test accuracy on true labels {accuracy:.3f}")

print("largest distance of a layer:", max(distances(model).values()))
m = measure_adapters(model, [({"input_ids": ids[:16]}, labels[:16])], layers=["*query*", "classifier*"])
print(f"Hessian distance measure of these layers: {m.hessian_distance(n=600):.3f}")
