"""Our BLIP is transformers' to the last digits, and writes its captions token by token."""

from __future__ import annotations

import pytest
import torch

from infra.torchvision_here import make_importable
from tests.training.models.blips import ALONE, CAPTIONS, blip, pairs, pictures, published_config, terms
from training.convert.blip import to_published
from training.generate import GenerationSettings
from training.models.blip_captions import JUDGE, READ, WRITE
from training.models.blip_encoder import BlipEncoder
from training.models.captioner import Captioner

make_importable()
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval  # noqa: E402

SIZES = {
    "uneven": {},
    "narrow picture": {
        "vision": {"width": 24, "layers": 3, "heads": 2, "patch": 4, "hidden": 40, "norm_eps": 1e-5},
        "text": {"width": 60, "layers": 2, "heads": 5, "hidden": 50, "positions": 20, "dropout": 0.1},
        "image_size": 12,
    },
    "one layer": {
        "vision": {"width": 32, "layers": 1, "heads": 1, "patch": 16},
        "text": {"width": 64, "layers": 1, "heads": 8, "positions": 64},
    },
}
CASES = [(size, scale) for size in SIZES for scale in (1.0, 3.0)]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # fp32, sums in another order


def put(theirs, module):
    """transformers' model with our weights."""
    missing, unexpected = theirs.load_state_dict(to_published(module.state_dict(), "transformers"), strict=False)
    assert not unexpected
    assert all("predictions.decoder" in name for name in missing)
    theirs.tie_weights()
    return theirs.eval()


def agree(found, wanted):
    """To 1e-5 of their size: with large weights, either is 3e-5 from what 64 bits give, of values up to 10."""
    torch.testing.assert_close(found, wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())), rtol=0)


def ended(rows, end, pad):
    """Padding behind the first end: where the padding's id is 0, transformers' beam search fills up with ends."""
    is_behind = ((rows == end).cumsum(1) - (rows == end).int()) > 0
    return rows.masked_fill(is_behind, pad)


def writer(size="uneven", scale=1.0, seed=0, smoothing=0.0, prompt=""):
    module = blip("blip.caption", seed, scale, **SIZES[size], smoothing=smoothing, prompt=prompt)
    config = BlipConfig(**published_config(module, label_smoothing=smoothing))
    return module, put(BlipForConditionalGeneration(config), module)


def filterer(size="uneven", scale=1.0):
    module = blip("blip.retrieval", 0, scale, **SIZES[size])
    return module, put(BlipForImageTextRetrieval(BlipConfig(**published_config(module))), module)


@pytest.mark.parametrize(("size", "scale"), CASES)
@torch.no_grad()
def test_image_tokens_similarities_and_matches_are_transformers(size, scale):
    module, theirs = filterer(size, scale)
    images, ids = pictures(len(CAPTIONS), module.settings.image_size), module.tokenizer(CAPTIONS)
    mask = module.tokenizer.is_text(ids).long()
    patches = module.vision(images)
    agree(patches, theirs.vision_model(images).last_hidden_state)

    def asked(word, **how):
        return theirs(module.tokenizer.begun(ids, word), images, attention_mask=mask, **how).itm_score

    encoder = BlipEncoder(module, "cpu", "float32", "")
    near = encoder.images(images) @ encoder.texts(CAPTIONS).T
    torch.testing.assert_close(near, asked(READ, use_itm_head=False), **CLOSE)
    logits = asked(JUDGE)
    agree(module.judge(ids, module.text.look(patches)), logits)
    found = encoder.match(encoder.look(images), torch.arange(len(ids)), encoder.tokens(CAPTIONS), 4)
    agree(found, logits[:, 1] - logits[:, 0])
    assert logits.std() > 1e-3  # the images and texts do tell
    assert near.std() > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("size", "scale"), CASES)
@torch.no_grad()
def test_word_logits_and_their_loss_are_transformers(size, scale, smoothing):
    module, theirs = writer(size, scale, smoothing=smoothing)
    batch = pairs(module)
    ids = module.tokenizer.begun(batch["text"], WRITE)
    is_text = module.tokenizer.is_text(ids)
    found = theirs(
        batch["image"], ids, attention_mask=is_text.long(), labels=ids.masked_fill(~is_text, -100), return_dict=True
    )
    outputs = module(batch, ALONE)
    agree(outputs["word_logits"], found.logits[:, :-1][is_text[:, 1:]])
    torch.testing.assert_close(terms(module, "blip.caption", batch)["language"], found.loss, **CLOSE)


@torch.no_grad()
def test_behind_a_prompt_the_loss_is_transformers_over_what_follows_it():
    module, theirs = writer(prompt="a picture of ", smoothing=0.1)
    batch = pairs(module)
    ids = module.tokenizer.begun(batch["text"], WRITE)
    labels = ids.masked_fill(~module.tokenizer.is_text(ids), -100)
    labels[:, : 1 + module.tokenizer.num_prompt] = -100
    assert module.tokenizer.num_prompt == 3
    theirs = theirs(batch["image"], ids, attention_mask=(ids != 0).long(), labels=labels)
    torch.testing.assert_close(terms(module, "blip.caption", batch)["language"], theirs.loss, **CLOSE)


def test_gradients_of_the_loss_are_transformers():
    module, theirs = writer(smoothing=0.1)
    batch = pairs(module)
    ids = module.tokenizer.begun(batch["text"], WRITE)
    is_text = module.tokenizer.is_text(ids)
    terms(module, "blip.caption", batch)["language"].backward()
    theirs(batch["image"], ids, attention_mask=is_text.long(), labels=ids.masked_fill(~is_text, -100)).loss.backward()
    wanted = {name: one.grad for name, one in theirs.named_parameters() if one.grad is not None}
    found = to_published({name: one.grad for name, one in module.named_parameters()}, "transformers")
    assert wanted.keys() <= found.keys()
    for name, gradient in wanted.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-4)  # a key's bias has none but rounding
        assert error < 1e-4, name  # fp32, and fewer than 1e-5 of a gradient where terms do not cancel


WAYS = {
    "greedy": ({"method": "greedy", "min_length": 0}, {"num_beams": 1}),
    "greedy, long": ({"method": "greedy", "min_length": 12}, {"num_beams": 1}),
    "greedy, penalty": ({"method": "greedy", "repetition_penalty": 1.3}, {"num_beams": 1, "repetition_penalty": 1.3}),
    "beam": ({"method": "beam", "num_beams": 3}, {"num_beams": 3}),
    "beam, penalty": (
        {"method": "beam", "num_beams": 4, "repetition_penalty": 1.1}, {"num_beams": 4, "repetition_penalty": 1.1}),
    "beam, short": ({"method": "beam", "num_beams": 3, "length_penalty": -1.0, "min_length": 0},
                    {"num_beams": 3, "length_penalty": -1.0}),
    "beam, all": ({"method": "beam", "num_beams": 3, "num": 3, "length_penalty": 2.0},
                  {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0}),
}  # fmt: skip


@pytest.mark.parametrize("prompt", ["", "a picture of "])
@pytest.mark.parametrize("way", WAYS)
def test_greedy_and_beam_captions_are_transformers(way, prompt):
    """Larger weights, so that a next token is far likelier than others; the end's bias, so that some captions end."""
    ours, theirs_too = WAYS[way]
    lengths = set()
    for seed in range(3):
        module, theirs = writer(seed=seed, scale=2.0, prompt=prompt)
        end = module.tokenizer.end
        with torch.no_grad():
            module.head.bias[end] += 3.0
        put(theirs, module)
        settings = GenerationSettings(**ours, max_length=14)
        images, begun = pictures(8, seed=seed), module.tokenizer.prompts(8)
        behind = torch.cat([begun, torch.full((8, 1), end)], 1)  # the last one is dropped there
        want = theirs.generate(
            images, behind, attention_mask=torch.ones_like(behind), max_length=14, min_length=settings.min_length,
            do_sample=False, **theirs_too,
        )  # fmt: skip
        want = ended(want, end, module.tokenizer.pad)
        written = Captioner(module, "cpu", "float32", "").write(images, [b"uid"] * 8, settings)
        flat = [one for each in written for one in each]
        assert [one.text for one in flat] == [module.tokenizer.text(row) for row in want.tolist()]
        num_words = (want != module.tokenizer.pad).sum(1).tolist()
        assert [one.num_tokens + begun.shape[1] for one in flat] == num_words
        lengths |= {*num_words}
        assert len({one.text for one in flat}) > 1 or seed
    assert len(lengths) > 1 or "long" in way


def test_the_tokens_are_transformers_not_only_their_words():
    """Through `generate` itself, where two tokens could read alike."""
    from training.blocks.decoding import StackDecoding
    from training.generate import generate

    module, theirs = writer(seed=5, scale=2.0)
    images, prompt = pictures(8), module.tokenizer.prompts(8)
    with torch.inference_mode():
        seen = module.text.look(module.vision(images))
        found = generate(
            lambda width, length: StackDecoding(module.text, module.head, "decoder", seen, width=width, length=length),
            prompt, GenerationSettings(method="beam", num_beams=3, max_length=14), end=module.tokenizer.end,
            pad=module.tokenizer.pad, uids=[b"uid"] * 8,
        )  # fmt: skip
    want = theirs.generate(images, max_length=14, min_length=5, num_beams=3, do_sample=False)
    want = ended(want, module.tokenizer.end, module.tokenizer.pad)
    assert torch.equal(found.tokens[:, 0, : want.shape[1]], want)
    assert (found.tokens[:, 0, want.shape[1] :] == module.tokenizer.pad).all()


@torch.no_grad()
def test_written_with_a_cache_is_written_without():
    """What the decoder says of each next token is what training shows it."""
    from training.blocks.decoding import StackDecoding

    module, _ = writer()
    batch = pairs(module)
    ids = module.tokenizer.begun(batch["text"], WRITE)
    seen = module.text.look(module.vision(batch["image"]))
    whole = module.head(module.text(ids, "decoder", context=seen), module.text.tokens.weight)
    for cuts in ([1] * 16, [5, 1, 1, 4, 5], [16]):
        decoding = StackDecoding(module.text, module.head, "decoder", seen, width=1, length=16)
        places = torch.tensor(cuts).cumsum(0) - 1
        found = torch.stack([decoding.read(part) for part in ids.split(cuts, 1)], 1)
        torch.testing.assert_close(found, whole[:, places], **CLOSE)
