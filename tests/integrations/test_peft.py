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
    return move(model)


def move(model, adapter="default"):
    """As training moves it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (f"lora_B.{adapter}" in name) or f"modules_to_save.{adapter}" in name:
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
    model.add_adapter("second", peft.LoraConfig(r=2, lora_alpha=5, target_modules=["query"]))
    move(model, "second")
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
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(transformers.GPT2ForSequenceClassification(config), lora)
    move(model)
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


# -- what starts elsewhere, or is no product ---------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = torch.nn.GRU(8, 8, batch_first=True)
        self.linear = torch.nn.Linear(8, 6)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x):
        hidden = torch.relu(self.conv(x)).mean((2, 3)).unsqueeze(1)
        hidden = self.recurrent(self.attention(hidden, hidden, hidden, need_weights=False)[0])[0]
        return self.head(torch.relu(self.linear(hidden[:, 0])))


def adapted(**changes):
    torch.manual_seed(1)
    model = peft.get_peft_model(Net(), peft.LoraConfig(**{"r": 2, "target_modules": ["linear"], **changes}))
    return move(model)


IMAGES = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 0, 1])
ASKED = {
    "distances": distances,
    "projection": lambda model: AdapterConstraint(model, 0.1).project_(),
    "reference": base_reference,
    "measure": lambda model: measure_adapters(model, [IMAGES]),
}


@pytest.mark.parametrize("ask", list(ASKED))
@pytest.mark.parametrize("way", ["pissa", "pissa_niter_2", "olora", False, "mica"])
def test_a_product_that_does_not_start_at_zero_is_refused_by_name(ask, way):
    with pytest.raises(
        LayerError, match=rf"'default' of 'base_model.model.linear'.*init_lora_weights={way!r}"
    ):
        ASKED[ask](adapted(init_lora_weights=way))


@pytest.mark.parametrize("ask", list(ASKED))
@pytest.mark.parametrize("way", [True, "gaussian", "eva", "orthogonal"])
def test_one_that_does_is_handled(ask, way):
    model = adapted(init_lora_weights=way)
    truth = base_reference(model).distances(merged(model))
    assert distances(model) == pytest.approx(truth, rel=1e-5, abs=1e-6)
    ASKED[ask](model)


def test_ranks_by_layer_are_those_of_the_merged_weights():
    model = adapted(
        target_modules=["linear", "head"],
        rank_pattern={"head": 1},
        alpha_pattern={"head": 7},
        use_rslora=True,
    )
    truth = base_reference(model).distances(merged(model))
    assert distances(model) == pytest.approx(truth, rel=1e-5, abs=1e-6)
    assert truth["head.weight"] > 0


@pytest.mark.parametrize("ask", list(ASKED))
@pytest.mark.parametrize(
    ("target", "said"),
    [("conv", "convolution of 2 groups"), ("attention", "inside torch's MultiheadAttention")],
)
def test_layers_that_peft_adapts_otherwise_are_refused_by_name(ask, target, said):
    with pytest.raises(LayerError, match=f"'base_model.model.{target}' .*{said}"):
        ASKED[ask](adapted(target_modules=["linear", target]))


@pytest.mark.parametrize("ask", list(ASKED))
def test_disabled_adapters_change_nothing_and_are_refused(ask):
    model = adapted(modules_to_save=["head"])
    with model.disable_adapter(), pytest.raises(LayerError, match="are disabled; enable them"):
        ASKED[ask](model)
    ASKED[ask](model)


def test_an_adapter_without_a_copy_leaves_the_original_module():
    model = adapted(modules_to_save=["head"])
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["linear"]))
    model.set_adapter("other")
    move(model, "other")
    torch.testing.assert_close(merged(model)(IMAGES[0]), model(IMAGES[0]))
    truth = base_reference(model).distances(merged(model))
    assert distances(model) == pytest.approx(truth, rel=1e-5, abs=1e-6)
    assert truth["head.weight"] == 0
    assert set(AdapterConstraint(model, 0.1).project_()) == {"linear.weight"}
    model.set_adapter("default")
    assert distances(model)["head.weight"] > 0


def test_what_trains_without_an_adapter_is_refused_by_name():
    model = adapted()
    dict(model.named_parameters())["base_model.model.head.weight"].requires_grad_(True)
    with pytest.raises(LayerError, match=r"head.weight trained beside adapters.*modules_to_save"):
        distances(model)
    with pytest.raises(LayerError, match=r"head.weight trained beside adapters"):
        AdapterConstraint(model, 0.1)


def test_quantised_weights_have_no_change_but_their_adapters_do():
    model = adapted()
    base = model.base_model.model.linear.base_layer
    base.weight = torch.nn.Parameter((100 * base.weight).to(torch.int8), requires_grad=False)
    with pytest.raises(LayerError, match=r"'base_model.model.linear' has quantised weights"):
        measure_adapters(model, [IMAGES])
    assert distances(model)["linear.weight"] > 0
    AdapterConstraint(model, 0.01).project_()
    assert distances(model)["linear.weight"] <= 0.01


def test_dora_is_measured_as_merged_and_not_held():
    model = adapted(use_dora=True)
    direct = ht.measure(merged(model), base_reference(model), [IMAGES])
    torch.testing.assert_close(measure_adapters(model, [IMAGES]).maximum, direct.maximum)
    with pytest.raises(LayerError, match="by more than a product"):
        AdapterConstraint(model, 0.1)


def test_a_copy_of_no_known_kind_is_warned_of():
    model = adapted(modules_to_save=["recurrent"])
    with pytest.warns(ht.errors.HesstuneWarning, match=r"does not hold recurrent.weight_ih_l0"):
        AdapterConstraint(model, 0.1)
    AdapterConstraint(model, {"*": 0.1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("norm", ["frobenius", "mars"])
def test_an_adapter_that_is_no_number_has_diverged(value, norm):
    model = adapted(modules_to_save=["head"])
    constraint = AdapterConstraint(model, 0.1, norm)
    with torch.no_grad():
        model.base_model.model.linear.lora_B["default"].weight[0, 0] = value
    kept = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ht.errors.DivergedError, match=r"linear.weight"):
        constraint.project_()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, kept[name], rtol=0, atol=0, equal_nan=True)
