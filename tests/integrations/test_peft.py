"""LoRA: the change is the product, whatever its factors; held in balls, measured as merged."""

from __future__ import annotations

import pytest
import torch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import hesstune as ht  # noqa: E402
from hesstune.errors import LayerError  # noqa: E402
from hesstune.integrations.peft import (  # noqa: E402
    AdapterConstraint,
    base_reference,
    distances,
    measure_adapters,
    merged,
    trained_copies,
)
from hesstune.integrations.transformers import RobustTrainerCallback, consistent_loss  # noqa: E402

KEY = "bert.encoder.layer.0.attention.self.query.weight"


def plain_bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    return transformers.BertForSequenceClassification(config)


def lora_bert(**changes):
    torch.manual_seed(1)
    config = {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["query", "dense"],
        "modules_to_save": ["classifier"],
    }
    model = peft.get_peft_model(plain_bert(), peft.LoraConfig(**{**config, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def batch(n=4, length=7):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 40, (n, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}, torch.randint(0, 2, (n,), generator=generator)


def test_names_and_reference_are_those_of_the_model_without_adapters():
    reference = base_reference(lora_bert())
    before = ht.Reference.of(plain_bert())
    assert reference.layers() == before.layers()
    for name in before.names():
        torch.testing.assert_close(reference[name], before[name], rtol=0, atol=0)


def test_merging_leaves_the_model_alone_and_gives_its_logits():
    model = lora_bert()
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    inputs, _ = batch()
    torch.testing.assert_close(merged(model)(**inputs).logits, model(**inputs).logits)
    assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"modules_to_save": None}])
def test_distances_without_the_product_are_those_of_the_merged_weights(changes):
    model = lora_bert(**changes)
    found = distances(model)
    truth = base_reference(model).distances(merged(model))
    assert list(found) == list(truth)
    assert found == pytest.approx(truth, rel=1e-5, abs=1e-7)
    assert found[KEY] > 0.1
    assert found["bert.encoder.layer.0.attention.self.key.weight"] == 0


def test_two_active_adapters_add_up():
    model = lora_bert(modules_to_save=None)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=["query"], init_lora_weights=False)
    model.add_adapter("second", config)
    model.base_model.set_adapter(["default", "second"])
    truth = base_reference(model).distances(merged(model))
    assert distances(model) == pytest.approx(truth, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
def test_projection_of_the_factors_is_that_of_the_weights(norm):
    model = lora_bert()
    radius = {KEY: 0.2, "classifier.weight": 0.4, "*": 1e3}
    whole, reference = merged(model), base_reference(model)
    expected = ht.DistanceConstraint(whole, reference, radius, norm).project_()
    found = AdapterConstraint(model, radius, norm).project_()
    assert found[KEY] > 0.2
    assert found["classifier.weight"] > 0.4
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-5)
    again = merged(model).state_dict()
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(again[name], weight, rtol=1e-5, atol=1e-6)
    assert AdapterConstraint(model, radius, norm).project_()[KEY] == pytest.approx(0.2, rel=1e-5)


def test_rows_of_transposed_weights():
    torch.manual_seed(4)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, num_labels=2, pad_token_id=0
    )
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    model = peft.get_peft_model(transformers.GPT2ForSequenceClassification(config), lora)
    whole, reference = merged(model), base_reference(model)
    ht.DistanceConstraint(whole, reference, {"*c_attn*": 0.05}, "mars").project_()
    AdapterConstraint(model, {"*c_attn*": 0.05}, "mars").project_()
    name = "transformer.h.0.attn.c_attn.weight"
    torch.testing.assert_close(merged(model).state_dict()[name], whole.state_dict()[name])


def test_the_measure_is_that_of_the_merged_model():
    model, data = lora_bert(), [batch()]
    options = {"steps": 40, "tol": 1e-6, "layers": ["*query*", "classifier*"]}
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    found = measure_adapters(model, data, **options)
    direct = ht.measure(merged(model), base_reference(model), data, **options)
    assert found.names == direct.names
    torch.testing.assert_close(found.quadratic, direct.quadratic)
    assert KEY in found.names
    assert found.maximum.min() > 0
    assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())


def test_the_trainer_holds_products_and_head_and_a_resumed_head_keeps_its_start(tmp_path):
    rows = []
    inputs, targets = batch(16)
    for at in range(16):
        rows.append({**{k: v[at] for k, v in inputs.items()}, "labels": targets[at]})

    def train(steps, resume):
        model = lora_bert()
        if resume:  # a script that builds the model anew draws another head
            with torch.no_grad():
                model.base_model.model.classifier.original_module.weight.add_(1.0)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            learning_rate=0.05,
            save_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model,
            arguments,
            train_dataset=rows,
            callbacks=[RobustTrainerCallback({"classifier*": 0.3, "*": 0.1})],
            compute_loss_func=consistent_loss(ht.NoiseMatrix.symmetric(2, 0.2)),
        )
        trainer.train(resume_from_checkpoint=resume)
        return model

    first = train(2, False)
    start = trained_copies(first)
    resumed = train(4, True)
    found = distances(resumed, start)
    assert max(v for k, v in found.items() if k != "classifier.weight") == pytest.approx(0.1, rel=1e-4)
    assert found["classifier.weight"] <= 0.3 * (1 + 1e-5)


def test_other_adapters_merged_ones_and_none_are_refused_by_name():
    with pytest.raises(LayerError, match=r"query.*more than a product"):
        distances(lora_bert(use_dora=True))
    model = lora_bert()
    model.merge_adapter()
    with pytest.raises(LayerError, match="unmerge"):
        base_reference(model)
    with pytest.raises(LayerError, match="no layer of this model"):
        AdapterConstraint(plain_bert(), 0.1)
