"""What live sessions and attached SAEs may hold: refused with numbers, let go in time, made again unchanged."""

from __future__ import annotations

import random

import pytest
import torch

from microscope.errors import MicroscopeError
from microscope.live import ResidentModel, cache, sessions
from microscope.live.run import bytes_held
from microscope.models import load_model
from microscope.params import Edit, EditPlan, Positions
from microscope.patching import save_adapter
from microscope.sae import load_sae
from tests.live_rig import PROMPT, attach, make_edit, random_adapter, random_edit, random_sae


def test_a_session_that_does_not_fit_is_refused_with_the_numbers(llama, monkeypatch):
    resident = ResidentModel(llama, cache_bytes=10_000_000)
    resident.open("s", PROMPT)
    run = resident.sessions.get("s").baseline
    held = run.embedded.nbytes * llama.n_layers + sum(t.nbytes for past in run.past for t in past)
    assert held == resident.sessions.run_bytes(len(run))
    monkeypatch.setattr(sessions, "bytes_free", lambda device: 0)
    for open_name in ("s", "t"):
        resident.sessions.limit = 1000
        with pytest.raises(MicroscopeError) as caught:
            resident.open(open_name, PROMPT)
        assert caught.value.code == "session_too_big"
        assert f"{len(run)} tokens needs" in caught.value.message
    assert len(resident.sessions) == 1
    resident.apply("s", EditPlan())  # the session that was open still is


def test_memory_that_others_can_give_up_counts_as_free(llama, monkeypatch):
    resident = ResidentModel(llama, cache_bytes=10_000_000)
    for name in "abc":
        resident.open(name, PROMPT)
    monkeypatch.setattr(sessions, "bytes_free", lambda device: 0)
    resident.open("d", PROMPT)


def test_idle_sessions_give_up_their_runs_and_go_on_bit_for_bit(llama):
    saes = [random_sae(32, layer, 1) for layer in range(4)]
    roomy, tight = ResidentModel(llama), ResidentModel(llama)
    for resident in (roomy, tight):
        for sae in saes:
            attach(resident, sae)
        for name in "abc":
            resident.open(name, f"{PROMPT} {name}")
    tight.sessions.limit = tight.sessions.get("a").nbytes * 3 // 2
    rng = random.Random(3)
    for step in range(12):
        name, plan = "abc"[step % 3], EditPlan(edits=(random_edit(rng, saes, 10),))
        roomy.sessions.get(name).evict_runs()  # so that both start from the unpatched run
        tight.sessions.get(name).evict_runs()
        ours, theirs = (r.apply(name, plan).outcome for r in (tight, roomy))
        assert torch.equal(ours.logits, theirs.logits)
        assert tight.sessions.nbytes <= tight.sessions.limit
    assert sum(state.unpatched is None for state in tight.sessions.by_name.values()) == 2
    assert all(state.unpatched is not None for state in roomy.sessions.by_name.values())


def test_a_text_being_written_goes_on_when_memory_is_short(llama):
    roomy, tight = ResidentModel(llama), ResidentModel(llama)
    for resident in (roomy, tight):
        resident.open("a", PROMPT)
        resident.start_generation("a", EditPlan(), seed=1, temperature=1.0, max_tokens=6)
    rows = len(tight.sessions.get("a").tokens)
    tight.sessions.limit = tight.sessions.get("a").claimed + 2 * tight.sessions.run_bytes(rows) + 1000
    for number in range(6):
        assert roomy.next_tokens("a") == tight.next_tokens("a")
        tight.open(f"other{number}", PROMPT)
        assert tight.sessions.by_name["a"].unpatched is not None or number == 5
        assert tight.sessions.nbytes <= tight.sessions.limit
    assert sum(state.unpatched is not None for state in tight.sessions.by_name.values()) <= 3


def test_texts_that_are_being_written_keep_their_room(llama):
    """Who comes later is refused, and not what has begun; when the text is done, there is room again."""
    resident = ResidentModel(llama)
    for name in "ab":
        resident.open(name, PROMPT)
    rows = len(resident.sessions.get("a").tokens)
    resident.sessions.limit = (
        2 * (2 * resident.sessions.run_bytes(rows) + resident.sessions.run_bytes(40)) + 3000
    )
    resident.start_generation("a", EditPlan(), max_tokens=40)
    for ask in (
        lambda: resident.open("c", PROMPT),
        lambda: resident.start_generation("b", EditPlan(), max_tokens=40),
    ):
        with pytest.raises(MicroscopeError) as caught:
            ask()
        assert caught.value.code == "session_too_big"
        assert "beside the texts that are being written" in caught.value.message
    while not resident.next_tokens("a").ended:
        assert resident.sessions.nbytes <= resident.sessions.limit
    resident.start_generation("b", EditPlan(), max_tokens=40)


def test_what_is_counted_is_what_is_held(tiny):
    """Keys and values are cut out of larger products: a session must not keep those alive, nor hide that it does."""
    resident = ResidentModel(tiny)
    sae = random_sae(32, 1, 1)
    attach(resident, sae)
    resident.open("s", PROMPT)
    state = resident.sessions.get("s")
    rows = len(state.tokens)
    head = 4 * tiny.vocab_size + 4 * rows * 32 + 9 * rows  # logits, the embedded prompt, ids and flags
    assert state.nbytes == resident.sessions.run_bytes(rows) + head
    for start in (0, 3):
        where = Positions(mode="from", start=start)
        resident.apply("s", EditPlan(edits=(make_edit(sae, 3, "add", 2.0, positions=where),)))
    for run in state.runs.values():
        for layer in run.layers:
            assert bytes_held(layer.past) == layer.past.nbytes
            assert bytes_held((layer.x,)) == layer.x.nbytes
    for name in ("other", "third"):
        resident.open(name, PROMPT)
        assert resident.sessions.nbytes == sum(s.measure() for s in resident.sessions.by_name.values())


def test_saes_are_put_away_and_fetched_again(llama, sae, sae_folder, monkeypatch):
    """Only what can be read again is put away; the one in use never is."""
    by_hand = random_sae(32, 1, 0)
    resident = ResidentModel(llama, attached_bytes=0)
    handmade = attach(resident, by_hand)
    found = resident.attach(sae_folder).content_fingerprint()
    assert set(resident.attached.saes) == {handmade, found}
    resident.open("s", PROMPT)
    edit = make_edit(sae, 3, "add", 4.0, positions=Positions(include_sinks=True))
    plan = EditPlan(edits=(edit,))
    first = resident.apply("s", plan).outcome.logits
    resident.attached.saes[handmade] = by_hand  # takes the place
    assert resident.attached.saes.in_memory == (by_hand,)
    resident.sessions.get("s").evict_runs()
    assert torch.equal(resident.apply("s", plan).outcome.logits, first)
    assert len(resident.attached.saes.in_memory) == 2
    monkeypatch.setattr(cache, "bytes_free", lambda device: 10)
    with pytest.raises(MicroscopeError) as caught:
        ResidentModel(llama, packed_bytes=0).attach(sae_folder)
    assert caught.value.code == "sae_too_big"
    assert "0.0 GB are free" in caught.value.message


def test_adapters_count_and_go_like_saes(llama, sae_folder, sae, tmp_path, monkeypatch):
    """One budget for both: the least recently used goes, of either kind, and is the same when it is back."""
    monkeypatch.setattr(cache, "bytes_free", lambda device: 10**9)
    folders = [save_adapter(random_adapter(llama, seed), tmp_path / str(seed)) for seed in range(2)]
    resident = ResidentModel(llama, attached_bytes=0)
    resident.open("s", PROMPT)
    first, second = (resident.attach_adapter(folder).fingerprint for folder in folders)
    assert set(resident.attached.adapters) == {first, second}
    assert [a.fingerprint for a in resident.attached.adapters.in_memory] == [second]
    plan = EditPlan(edits=(Edit(kind="lora", adapter=first, strength=1.0),))
    before = resident.apply("s", plan).outcome.logits
    assert [a.fingerprint for a in resident.attached.adapters.in_memory] == [first]
    resident.attach(sae_folder)
    assert (len(resident.attached.saes.in_memory), resident.attached.adapters.in_memory) == (1, ())
    resident.sessions.get("s").evict_runs()
    assert torch.equal(resident.apply("s", plan).outcome.logits, before)
    assert resident.attached.saes.in_memory == ()
    roomy = ResidentModel(llama)
    for folder in folders:
        roomy.attach_adapter(folder)
    roomy.attach(sae_folder)
    held = sum(a.nbytes for a in roomy.attached.adapters.in_memory)
    assert roomy.attached.budget.nbytes == held + sum(t.nbytes for t in sae.state_dict().values())
    save_adapter(random_adapter(llama, 7), folders[1])
    with pytest.raises(MicroscopeError) as caught:
        resident.apply("s", EditPlan(edits=(Edit(kind="lora", adapter=second, strength=1.0),)))
    assert caught.value.code == "wrong_adapter"
    monkeypatch.setattr(cache, "bytes_free", lambda device: 10)
    with pytest.raises(MicroscopeError) as caught:
        resident.attach_adapter(folders[0], expect="0" * 32)
    assert caught.value.code == "adapter_too_big"
    resident.apply("s", EditPlan())


def test_an_sae_whose_files_changed_meanwhile_is_not_used(llama, sae_folder, monkeypatch):
    resident = ResidentModel(llama, attached_bytes=0)
    found = resident.attach(sae_folder).content_fingerprint()
    attach(resident, random_sae(32, 1, 0))
    other = load_sae(sae_folder)
    other.b_enc.data += 1.0
    monkeypatch.setattr(cache, "load_sae", lambda path, device: other)
    with pytest.raises(MicroscopeError) as caught:
        resident.attached.saes[found]
    assert caught.value.code == "wrong_sae"


def test_in_bfloat16_answers_stay_within_the_stated_share_of_the_logits(model_folders):
    """3 % of the norm of the logits: what rounding at other shapes does to the plain forward itself."""
    loaded = load_model(str(model_folders["llama"]), dtype="bfloat16", device="cpu")
    resident, sae = ResidentModel(loaded), random_sae(32, 1, 0)
    attach(resident, sae)
    resident.open("s", PROMPT)
    ids = resident.sessions.get("s").baseline.tokens
    block, unit = loaded.model.get_submodule(f"{loaded.family.blocks}.1"), sae.W_dec[5] / sae.W_dec[5].norm()
    for start in (0, 5, len(ids) - 1):
        for strength in (0.5, 3.0, -2.0):

            def hook(_module, _inputs, output, start=start, strength=strength):
                x = (output[0] if isinstance(output, tuple) else output).clone()
                x[:, start:] += (strength * unit).to(x.dtype)
                return (x, *output[1:]) if isinstance(output, tuple) else x

            handle = block.register_forward_hook(hook)
            try:
                with torch.inference_mode():
                    expected = loaded.model(ids[None]).logits[0, -1].float()
            finally:
                handle.remove()
            where = Positions(mode="from", start=start, include_sinks=True)
            plan = EditPlan(edits=(make_edit(sae, 5, "add", strength, positions=where),))
            got = resident.apply("s", plan).outcome.logits
            assert (got - expected).norm() <= 0.03 * expected.norm()
