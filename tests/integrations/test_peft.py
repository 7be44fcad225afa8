"""LoRA: the change is the product B·A; it is constrained and measured as that of the merged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import hesstune as ht  # noqa: E402
from dense_hessians import block_jacobian  # noqa: E402
from hesstune.errors import DivergedError, HesstuneWarning, LayerError, ModelError  # noqa: E402
from hesstune.forward import logits_of  # noqa: E402
from hesstune.integrations._shared import constraint_of, distances_of, reference_of  # noqa: E402
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
WORDS, PLACES, BODY, HEAD = "words.weight", "places.weight", "body.weight", "head.weight"


def plain_bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def plain_gpt2():
    torch.manual_seed(4)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, num_labels=2, pad_token_id=0
    )
    return transformers.GPT2ForSequenceClassification(config)


class Net(nn.Module):
    """Every kind of layer that peft adapts; the inputs are token ids."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(20, 8, padding_idx=0), nn.Embedding(4, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = self.recurrent(self.attention(x, x, x, need_weights=False)[0])[0]
        return self.head(torch.tanh(self.body(x)).mean(1))


def adapted(net=Net, compiled=False, **changes):
    """A network with adapters, moved as by training."""
    options = {"r": 2, "lora_alpha": 6, "target_modules": ["body"], **changes}
    torch.manual_seed(1)
    model = moved(peft.get_peft_model(net(), peft.LoraConfig(**options)))
    return torch.compile(model, backend="eager") if compiled else model


def lora_bert(**changes):
    options = {"r": 3, "target_modules": ["query", "dense"], "modules_to_save": ["classifier"]}
    return adapted(plain_bert, **{**options, **changes})


def embedded(targets=("words", "body"), **changes):
    return adapted(**{"target_modules": list(targets), "modules_to_save": ["head"], **changes})


def moved(model, adapter="default"):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and adapter in name and "lora_A" not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def batch(n=4, length=7):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 40, (n, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}, torch.randint(0, 2, (n,), generator=generator)


IDS = torch.randint(0, 20, (5, 4), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1])


def changes_of(model):
    """The change of every weight, from peft's own merging."""
    whole, reference = merged(model), base_reference(model)
    return {name: p.detach() - reference[name] for name, p in whole.named_parameters()}


def test_names_reference_and_logits_are_those_of_the_merged_model():
    model, before = lora_bert(), ht.Reference.of(plain_bert())
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    reference, inputs = base_reference(model), batch()[0]
    assert reference.layers() == before.layers()
    for name in before.names():
        torch.testing.assert_close(reference[name], before[name], rtol=0, atol=0)
    torch.testing.assert_close(merged(model)(**inputs).logits, model(**inputs).logits)
    assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())


def second(model, **options):
    """Add a second active adapter."""
    model.add_adapter("second", peft.LoraConfig(lora_alpha=5, **options))
    moved(model, "second")
    model.base_model.set_adapter(["default", "second"])
    return model


PATTERNS = {"rank_pattern": {"head": 1}, "alpha_pattern": {"head": 7}, "use_rslora": True}
MODELS = {
    "bert": lora_bert,
    "bert, no copies": lambda: lora_bert(modules_to_save=None, use_rslora=True),
    "bert, two adapters": lambda: second(lora_bert(modules_to_save=None), r=2, target_modules=["query"]),
    "transposed": lambda: adapted(plain_gpt2, target_modules=["c_attn"], fan_in_fan_out=True),
    "ranks by layer": lambda: adapted(target_modules=["body", "head"], **PATTERNS),
    "embedding": embedded,
    "two embeddings": lambda: embedded(("words", "places")),
    "two adapters of an embedding": lambda: second(embedded(), r=3, target_modules=["words"]),
    "compiled": lambda: embedded(compiled=True),
    **{
        f"init {way}": lambda w=way: adapted(init_lora_weights=w)
        for way in (True, "gaussian", "eva", "orthogonal")
    },
}


@pytest.mark.parametrize("kind", MODELS)
def test_distances_are_those_of_the_merged_weights(kind):
    model = MODELS[kind]()
    found, changed = distances(model), changes_of(model)
    assert found == pytest.approx({name: float(changed[name].norm()) for name in found}, rel=1e-5, abs=1e-6)
    assert max(found.values()) > 0.1
    assert set(found) >= set(base_reference(model).layers())


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
@pytest.mark.parametrize(
    ("kind", "radius"),
    [
        ("bert", {KEY: 0.2, "classifier.weight": 0.4, "*": 1e3}),
        ("transposed", {"*c_attn*": 0.05}),
        ("embedding", 0.05),
        ("embedding", {WORDS: 0.05, BODY: 0.02}),
        ("compiled", {"*": 0.05}),
    ],
)
def test_projection_of_the_factors_is_that_of_the_weights(kind, radius, norm):
    model = MODELS[kind]()
    before = changes_of(model)
    constraint = AdapterConstraint(model, radius, norm)
    found, after = constraint.project_(), changes_of(model)
    for name, limit in constraint.radii.items():
        rows = before[name].flatten(1).abs().sum(1)
        size = float(before[name].norm() if norm == "frobenius" else rows.max())
        assert found[name] == pytest.approx(size, rel=1e-5)
        scale = min(1.0, limit / size) if norm == "frobenius" else (limit / rows).clamp(max=1.0)[:, None]
        torch.testing.assert_close(after[name], before[name] * scale, rtol=1e-4, atol=1e-6)
    if kind == "bert":
        whole, reference = merged(MODELS[kind]()), base_reference(model)
        ht.DistanceConstraint(whole, reference, radius, norm).project_()
        for name, weight in whole.state_dict().items():
            torch.testing.assert_close(merged(model).state_dict()[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "embedding", "dora"])
def test_the_measure_is_that_of_the_merged_model(kind):
    model = adapted(use_dora=True) if kind == "dora" else MODELS[kind]()
    bert = kind == "bert"
    data = [batch() if bert else IDS]
    options = {"steps": 8, "layers": ["*0*query*", "classifier*"] if bert else [BODY, HEAD]}
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    found = measure_adapters(model, data, **options)
    direct = ht.measure(merged(model), base_reference(model), data, **options)
    assert found.names == direct.names
    torch.testing.assert_close(found.quadratic, direct.quadratic)
    assert KEY in found.names if bert else found.names == [BODY, HEAD]
    assert found.not_layers == ([WORDS] if kind == "embedding" else [])
    assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("classes", [3, 60])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_a_causal_language_model_that_classifies_has_gauss_newton_values_of_its_products(family, classes):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{family}Config")(
        **sizes, num_key_value_heads=1, head_dim=4, vocab_size=40, num_labels=classes, pad_token_id=0
    )
    torch.manual_seed(0)
    network = getattr(transformers, f"{family}ForSequenceClassification")(config)
    options = {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "SEQ_CLS"}
    model = moved(peft.get_peft_model(network, peft.LoraConfig(**options)))
    inputs, targets = batch()
    found = measure_adapters(model, [(inputs, targets)], method="gauss_newton", skip_classes=0.0)
    assert set(found.methods) == {"gauss_newton"}
    whole, reference = merged(model), base_reference(model)
    p = whole(**inputs).logits.detach().softmax(1)
    total = 0
    for column, name in enumerate(found.names):
        v = whole.get_parameter(name).detach() - reference[name]  # B·A − start
        jacobian = block_jacobian(whole, inputs, name)
        u = jacobian @ v.flatten()
        wanted = (p * (u - (p * u).sum(1, keepdim=True)).square()).sum(1)
        torch.testing.assert_close(found.quadratic[:, column].float(), wanted, rtol=1e-2, atol=1e-6)
        trained = ("q_proj", "v_proj", "down_proj", "score")
        assert any(part in name for part in trained) == bool(v.any())
        total = total + u
    joint = (p * (total - (p * total).sum(1, keepdim=True)).square()).sum(1)
    torch.testing.assert_close(found.more["joint"][:, 0].float(), joint, rtol=1e-2, atol=1e-6)


def test_the_logits_of_all_tokens_of_a_language_model_are_refused():
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=40))
    with pytest.raises(ModelError, match=r"\(N, K\)"):
        ht.measure(model, ht.Reference.of(model), [batch()], method="gauss_newton")


def test_the_trainer_constrains_products_and_head_and_a_resumed_head_keeps_its_start(tmp_path):
    inputs, targets = batch(16)
    rows = [{**{k: v[at] for k, v in inputs.items()}, "labels": targets[at]} for at in range(16)]

    def train(steps, resume):
        model = lora_bert()
        if resume:  # a script that builds the model anew draws another head
            with torch.no_grad():
                model.base_model.model.classifier.original_module.weight.add_(1.0)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, learning_rate=0.05, save_steps=2, report_to=[],
            use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        callback = RobustTrainerCallback({"classifier*": 0.3, "*": 0.1})
        loss = consistent_loss(ht.NoiseMatrix.symmetric(2, 0.2))
        trainer = transformers.Trainer(
            model, arguments, train_dataset=rows, callbacks=[callback], compute_loss_func=loss
        )
        trainer.train(resume_from_checkpoint=resume)
        return model

    start = trained_copies(train(2, False))
    found = distances(train(4, True), start)
    assert max(v for k, v in found.items() if k != "classifier.weight") == pytest.approx(0.1, rel=1e-4)
    assert found["classifier.weight"] <= 0.3 * (1 + 1e-5)


def test_callbacks_constrain_embeddings():
    model = embedded()
    reference = reference_of(model)
    constraint_of(model, reference, 0.1, "frobenius").project_()
    assert max(distances_of(model, reference).values()) <= 0.1


# What is refused, by name

ASKED = {
    "distances": distances,
    "projection": lambda model: AdapterConstraint(model, 0.1).project_(),
    "reference": base_reference,
    "measure": lambda model: measure_adapters(model, [IDS]),
}
REFUSED = {
    "pissa": ({"init_lora_weights": "pissa"}, "'base_model.model.body'.*init_lora_weights='pissa'"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    "random": ({"init_lora_weights": False}, "init_lora_weights=False"),
    "groups": ({"target_modules": ["conv"]}, "'base_model.model.conv' .*convolution of 2 groups"),
    "attention": ({"target_modules": ["attention"]}, "'base_model.model.attention' .*MultiheadAttention"),
}


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize("kind", REFUSED)
def test_adapters_without_a_known_change_are_refused(kind, ask):
    options, said = REFUSED[kind]
    with pytest.raises(LayerError, match=said):
        ASKED[ask](adapted(**options))


@pytest.mark.parametrize("ask", ASKED)
def test_disabled_adapters_are_refused(ask):
    model = adapted(modules_to_save=["head"])
    with model.disable_adapter(), pytest.raises(LayerError, match="disabled"):
        ASKED[ask](model)
    ASKED[ask](model)


def test_other_states_are_refused():
    for model in (adapted(use_dora=True), embedded(use_dora=True)):
        for ask in ("distances", "projection"):
            with pytest.raises(LayerError, match="more than a product"):
                ASKED[ask](model)
    model = adapted()
    model.merge_adapter()
    with pytest.raises(LayerError, match="unmerge"):
        base_reference(model)
    with pytest.raises(LayerError, match="no layer of this model"):
        AdapterConstraint(plain_bert(), 0.1)
    model = adapted()
    dict(model.named_parameters())["base_model.model.head.weight"].requires_grad_(True)
    for ask in ("distances", "projection"):
        with pytest.raises(LayerError, match=r"head.weight trained beside adapters.*modules_to_save"):
            ASKED[ask](model)


def test_an_adapter_without_a_copy_leaves_the_original_module():
    model = adapted(modules_to_save=["head"])
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["body"]))
    model.set_adapter("other")
    moved(model, "other")
    torch.testing.assert_close(merged(model)(IDS[0]), model(IDS[0]))
    assert distances(model)[HEAD] == 0
    assert set(AdapterConstraint(model, 0.1).project_()) == {BODY}
    model.set_adapter("default")
    assert distances(model)[HEAD] > 0


def test_quantised_weights_cannot_be_measured_but_their_adapters_are_constrained():
    model = adapted()
    base = model.base_model.model.body.base_layer
    base.weight = nn.Parameter((100 * base.weight).to(torch.int8), requires_grad=False)
    with pytest.raises(LayerError, match=r"'base_model.model.body' has quantised weights"):
        ASKED["measure"](model)
    assert distances(model)[BODY] > 0
    AdapterConstraint(model, 0.01).project_()
    assert distances(model)[BODY] <= 0.01


@pytest.mark.parametrize(("saved", "name"), [("recurrent", "recurrent.weight_ih_l0"), ("places", PLACES)])
def test_copies_that_are_no_layers_are_warned_of(saved, name):
    model = adapted(modules_to_save=[saved])
    for ask in (distances, lambda model: AdapterConstraint(model, 0.1)):
        with pytest.warns(HesstuneWarning, match=name):
            ask(model)
    AdapterConstraint(model, {"*": 0.1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("norm", ["frobenius", "mars"])
def test_an_adapter_that_is_not_finite_has_diverged(value, norm):
    model = adapted(modules_to_save=["head"])
    constraint = AdapterConstraint(model, 0.1, norm)
    with torch.no_grad():
        model.base_model.model.body.lora_B["default"].weight[0, 0] = value
    kept = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(DivergedError, match=BODY):
        constraint.project_()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, kept[name], rtol=0, atol=0, equal_nan=True)


def test_stored_norms_of_dora_are_cleared():
    """peft stores the norms of DoRA's weights in eval mode if its caching is on."""
    from peft.helpers import DoraCaching

    model = adapted(use_dora=True)
    with DoraCaching(), torch.no_grad():
        logits_of(model, IDS[0])
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(1.0)
        after = logits_of(model, IDS[0])
    torch.testing.assert_close(after, model(IDS[0]).detach())


def test_optimizers_that_average_factors_are_refused_and_layers_outside_are_named():
    """A product of averages is no average of products."""
    model = adapted()
    constraint = AdapterConstraint(model, 0.1)
    assert set(constraint.outside()) == set(constraint.radii)
    constraint.project_()
    assert constraint.outside() == {}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.ASGD(trained, 0.1)
    logits_of(model, IDS[0]).sum().backward()
    optimizer.step()
    with pytest.raises(LayerError, match="lora_"):
        constraint.project_()
