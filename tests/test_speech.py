"""Spoken words: files read as they are, a front end that equals its graph, no speaker on two sides, networks of the
promised size."""

import dataclasses
import json
import wave

import numpy as np
import pytest
import torch

from edgekd import signatures
from edgekd.data import check
from edgekd.data.augmentation import spectral
from edgekd.data.logmel import LogMel, filterbank, fitted, frontend_onnx, hann, logmel
from edgekd.data.speech import read
from edgekd.errors import BaselineError, UsageError
from edgekd.models.networks import ds_cnn
from edgekd.tasks.speech import speech

SMALL = LogMel(rate=8000, length=2000, window=256, hop=160, mels=16)


def told(call) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    assert all(p.place for p in caught.value.problems)
    return str(caught.value)


def tone(pitch, count=1600, seed=0, level=8000):
    """[count] int16: a tone of `pitch` Hz at 8 kHz in a little noise."""
    noise = np.random.default_rng(seed).normal(0, 50, count)
    return (level * np.sin(2 * np.pi * pitch * np.arange(count) / 8000) + noise).astype(np.int16)


def record(path, sound, rate=8000, width=2, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.asarray(sound).tobytes())
    return path


def flat(folder, speakers=("anna", "ben", "carl_d"), digits=3, takes=8):
    """{id: sound} of the files {digit}_{speaker}_{take}.wav written into `folder`: each digit has its pitch."""
    made = {}
    for d in range(digits):
        for s, speaker in enumerate(speakers):
            for take in range(takes):
                name = f"{d}_{speaker}_{take}.wav"
                made[name] = tone(300 + 600 * d + 30 * s, 1200 + 150 * take, seed=100 * d + 10 * s + take)
                record(folder / name, made[name])
    return made


def npz(folder, speakers=("anna", "ben"), digits=3, **changed):
    """train.npz (6 takes) and test.npz (2 takes); `changed` columns stand in both."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, takes in (("train", range(2, 8)), ("test", range(2))):
        rows = [(d, s, take) for take in takes for s in range(len(speakers)) for d in range(digits)]
        sounds = [
            tone(300 + 600 * d + 30 * s, 1000 + 100 * take, seed=1000 + 100 * d + 10 * s + take) for d, s, take in rows
        ]
        columns = {
            "audio": np.concatenate(sounds),
            "offset": np.concatenate([[0], np.cumsum([len(s) for s in sounds])]),
            "label": np.array([r[0] for r in rows], np.uint8),
            "speaker": np.array([r[1] for r in rows], np.uint8),
            "speaker_name": np.array(speakers),
        } | changed
        np.savez(folder / f"{name}.npz", **{k: v for k, v in columns.items() if v is not None})


# ---------------------------------------------------------------- files


def test_flat_names_are_digit_speaker_and_take(tmp_path):
    made = flat(tmp_path)
    for folder in (tmp_path, tmp_path.parent / "whole"):
        if folder != tmp_path:
            folder.mkdir()
            tmp_path.rename(folder / "recordings")  # as the repository has it
        clips = read(folder)
        assert clips.ids == sorted(made) and clips.rate == 8000 and clips.classes == ("0", "1", "2")
        for i, name in enumerate(clips.ids):
            digit, speaker, take = (
                name[0],
                name[2:].rpartition("_")[0],
                int(name.removesuffix(".wav").rpartition("_")[2]),
            )
            assert (str(clips.labels[i]), clips.speakers[i], clips.test[i]) == (digit, speaker, take < 5)
            assert clips.audio[i].dtype == np.int16 and np.array_equal(clips.audio[i], made[name])


def test_class_folders_and_8_bits(tmp_path):
    sound = np.array([0, 127, 128, 129, 255], np.uint8)
    record(tmp_path / "yes" / "anna_nohash_0.wav", sound, width=1)
    record(tmp_path / "yes" / "alone.WAV", np.array([-32768, 0, 32767], np.int16))
    record(tmp_path / "no" / "anna_1.wav", tone(500))
    record(tmp_path / "_background_noise_" / "hum.wav", tone(50))
    clips = read(tmp_path)
    assert clips.classes == ("no", "yes") and clips.ids == ["no/anna_1.wav", "yes/alone.WAV", "yes/anna_nohash_0.wav"]
    assert clips.speakers == ["anna", "", "anna"] and clips.labels.tolist() == [0, 1, 1]
    # by hand
    assert clips.audio[2].tolist() == [-32768, -256, 0, 256, 32512] and clips.audio[1].tolist() == [-32768, 0, 32767]
    assert clips.test[0] == clips.test[2]  # anna stands on one side


def test_in_class_folders_a_speaker_stays_on_one_side(tmp_path):
    for word in ("no", "yes", "stop"):
        for number in range(30):
            record(tmp_path / word / f"s{number}_nohash_0.wav", tone(440, 20))
    clips = read(tmp_path)
    sides = {}
    for speaker, test in zip(clips.speakers, clips.test.tolist(), strict=True):
        sides.setdefault(speaker, set()).add(test)
    assert len(sides) == 30 and all(len(s) == 1 for s in sides.values())
    assert 1 <= sum(s == {True} for s in sides.values()) <= 12  # a fifth, by the hash of the name


def test_wrong_wavs_are_all_told(tmp_path):
    flat(tmp_path, digits=2)
    record(tmp_path / "0_anna_0.wav", np.zeros((40, 2), np.int16), channels=2)
    record(tmp_path / "0_anna_1.wav", np.zeros(160, np.uint8), width=4)
    record(tmp_path / "0_anna_2.wav", tone(440), rate=16000)
    record(tmp_path / "0_anna_3.wav", [])
    (tmp_path / "0_anna_4.wav").write_bytes(b"RIFF of nothing")
    whole = (tmp_path / "0_anna_5.wav").read_bytes()
    (tmp_path / "0_anna_5.wav").write_bytes(whole[: len(whole) // 2])
    floats = bytearray(whole)
    floats[20:22] = (3).to_bytes(2, "little")  # the format's tag: IEEE float
    (tmp_path / "0_anna_6.wav").write_bytes(bytes(floats))
    (tmp_path / "0_anna_7.wav").write_bytes(b"")
    text = told(lambda: read(tmp_path))
    words = (
        "2 channels",
        "32 bits",
        "sample rate of 16000",
        "has no samples",
        "can't be read",
        "is cut off",
        "unknown format",
        "too early",
    )
    for take, word in enumerate(words):
        assert word in next(line for line in text.splitlines() if f"0_anna_{take}.wav:" in line)
    assert text.count("hint") == 8
    (tmp_path / "hello.wav").write_bytes(whole)
    assert "hello.wav" in told(lambda: read(tmp_path))


def test_many_wrong_files_are_counted(tmp_path):
    for take in range(14):
        (tmp_path / f"0_anna_{take}.wav").write_bytes(b"rubbish")
    assert "and 4 more" in told(lambda: read(tmp_path))


def test_folders_that_hold_no_words(tmp_path):
    assert "no such folder" in told(lambda: read(tmp_path / "none"))
    assert "no class folders" in told(lambda: read(tmp_path))
    record(tmp_path / "yes" / "a_1.wav", tone(440))
    assert "one class" in told(lambda: read(tmp_path))
    (tmp_path / "no").mkdir()
    assert "has no .wav files" in told(lambda: read(tmp_path))


def test_npz_gives_the_clips_of_both_files(tmp_path):
    npz(tmp_path)
    clips = read(tmp_path)
    assert (
        len(clips.audio) == 48 and clips.test.sum() == 12 and clips.ids[0] == "train/0" and clips.ids[-1] == "test/11"
    )
    assert [len(a) for a in clips.audio[36:]] == [1000] * 6 + [1100] * 6 and clips.rate == 8000
    assert (
        np.array_equal(clips.audio[36 + 4], tone(300 + 600 * 1 + 30, 1000, seed=1110))
        and clips.speakers[36 + 4] == "ben"
    )
    npz(tmp_path, rate=np.array(16000))
    assert read(tmp_path).rate == 16000


@pytest.mark.parametrize(
    "changed, word",
    [
        ({"audio": np.zeros(9)}, "audio: is float64"),
        ({"offset": np.arange(4)}, "offset: does not rise"),
        ({"offset": np.zeros(3)}, "offset: is float64"),
        ({"label": np.full(36, -1)}, "label"),
        ({"speaker": np.full(36, 2)}, "speaker"),
        ({"speaker_name": np.array(["a", "b"], object)}, "train.npz"),
        ({"speaker_name": np.arange(2)}, "speaker_name"),
        ({"label": None}, "has no label"),
        ({"rate": np.array(8000.5)}, "rate"),
    ],
)
def test_npz_that_is_wrong(tmp_path, changed, word):
    npz(tmp_path, **changed)
    assert word in told(lambda: read(tmp_path))


def test_npz_rubbish_is_never_unpickled(tmp_path):
    npz(tmp_path)
    for content in (b"", b"PK\x03\x04 rubbish", b"\x80\x04N."):
        (tmp_path / "test.npz").write_bytes(content)
        assert "test.npz" in told(lambda: read(tmp_path))
    (tmp_path / "test.npz").unlink()
    assert "test.npz" in told(lambda: read(tmp_path))


# ---------------------------------------------------------------- front end


def test_filterbank_by_hand():
    # mel(0) = 0, mel(6300) = 2595 log10(10) = 2595; halfway 1297.5 is 700 (sqrt(10) - 1) = 1513.594 Hz. Frequencies lie
    # 1000 Hz apart: 1000 / 1513.594 = 0.660679; (6300 - 2000) / (6300 - 1513.594) = 4300 / 4786.406 = 0.898377, and
    # 3300, 2300, 1300, 300 of the same
    one = filterbank(LogMel(16000, 16, 16, 16, 1, 0.0, 6300.0))
    assert np.allclose(one[:, 0], [0, 0.660679, 0.898377, 0.689453, 0.480528, 0.271603, 0.062677, 0, 0], atol=1e-6)


def test_filterbank_is_interpolation_between_corners():
    bank, frequency = filterbank(SMALL), np.fft.rfftfreq(256, 1 / 8000)
    mel = lambda f: 1127.01048 * np.log(1 + f / 700)  # the same scale with a natural logarithm: 2595 / ln 10
    corner = [700 * (np.exp(m / 1127.01048) - 1) for m in np.linspace(mel(20), mel(4000), 18)]
    for band in range(16):
        assert np.allclose(bank[:, band], np.interp(frequency, corner[band : band + 3], [0, 1, 0]), atol=1e-6)


def test_a_full_sine_has_power_one():
    # 1000 Hz is frequency 32 of a window of 256 at 8 kHz: power 1 there, and a quarter on both sides (Hann's transform
    # is 1/4, 1/2, 1/4)
    sound = np.round(32767 * np.cos(2 * np.pi * 1000 * np.arange(2000) / 8000)).astype(np.int16)
    bank = filterbank(SMALL)
    expected = np.log(np.maximum(bank[32] + (bank[31] + bank[33]) / 4, SMALL.floor))
    heard = expected > np.log(1e-3)
    values = logmel([sound], SMALL)[0, 0]
    assert values.shape == (11, 16) == (SMALL.frames, SMALL.mels) and heard.sum() >= 1
    assert np.allclose(values[:, heard], expected[heard], atol=1e-3)


def test_logmel_is_scipys_spectrogram():
    signal = pytest.importorskip("scipy.signal")
    clips = [tone(p, 2000, seed=p, level=4000) for p in (250, 1000, 3100)]
    settings = dataclasses.replace(SMALL, mean=-7.0, deviation=3.0)
    for clip, mine in zip(clips, logmel(clips, settings), strict=True):
        magnitude = signal.spectrogram(
            clip / 32768,
            window=signal.get_window("hann", 256),
            nperseg=256,
            noverlap=96,
            detrend=False,
            scaling="spectrum",
            mode="magnitude",
        )[2]
        theirs = (np.log((filterbank(settings).T @ (2 * magnitude) ** 2).clip(1e-8)).T + 7) / 3
        assert np.allclose(mine[0], theirs, atol=1e-5)
    assert np.allclose(hann(256), signal.get_window("hann", 256))


def test_clips_are_fitted_around_their_middle():
    clip = (np.arange(1, 6) * 3277).astype(np.int16)
    numbers = lambda length: np.rint(fitted(clip, length) * 32768 / 3277).astype(int).tolist()
    assert numbers(5) == [1, 2, 3, 4, 5] and numbers(3) == [2, 3, 4] and numbers(4) == [1, 2, 3, 4]
    assert numbers(7) == [0, 1, 2, 3, 4, 5, 0] and numbers(8) == [0, 1, 2, 3, 4, 5, 0, 0]
    silent = logmel([np.zeros(10, np.int16)], dataclasses.replace(SMALL, mean=-9.0, deviation=4.0))
    assert np.allclose(silent, (np.log(1e-8) + 9) / 4) and silent.max() == np.float32(
        dataclasses.replace(SMALL, mean=-9.0, deviation=4.0).ground
    )


def test_extremes_are_finite_and_chunks_are_alike():
    rng = np.random.default_rng(0)
    clips = [np.full(2000, -32768, np.int16), np.tile(np.array([-32768, 32767], np.int16), 1000), np.ones(1, np.int16)]
    clips += [rng.integers(-32768, 32767, int(n)).astype(np.int16) for n in rng.integers(1, 5000, 300)]
    values = logmel(clips, SMALL)
    assert np.isfinite(values).all() and values.max() < 6
    for i in (0, 255, 256, 302):
        assert np.allclose(values[i], logmel([clips[i]], SMALL)[0], atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        LogMel(8000, 8000, 256, 160, 32, mean=-15.8, deviation=3.8),
        LogMel(16000, 8000, 511, 320, 40, 60.0, 7600.0),
        LogMel(8000, 256, 256, 256, 8),
    ],
)
def test_onnx_front_end_is_the_numpy_one(settings):
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(1)
    clips = [tone(p, 3000, seed=p, level=30000) for p in (250, 1000, 3100)]
    clips += [
        rng.integers(-32768, 32767, 4000).astype(np.int16),
        np.zeros(5, np.int16),
        np.full(9000, 32767, np.int16),
        tone(700, level=30),
    ]
    model = frontend_onnx(settings)
    assert {n.op_type for n in model.graph.node} == {
        "Gather",
        "MatMul",
        "Mul",
        "Add",
        "Max",
        "Log",
        "Sub",
        "Div",
        "Unsqueeze",
    }
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for some in (clips, clips[:1]):
        sound = np.stack([fitted(c, settings.length) for c in some]).astype(np.float32)
        (values,) = session.run(None, {"audio": sound})
        assert values.shape == (len(some), 1, settings.frames, settings.mels)
        assert np.abs(values - logmel(some, settings)).max() < 1e-3


@pytest.mark.parametrize(
    "changed, word",
    [
        ({"mels": 128}, "fewer mels"),
        ({"high": 4001.0}, "invalid settings"),
        ({"hop": 0}, "invalid settings"),
        ({"length": 255}, "invalid settings"),
        ({"floor": 0.0}, "invalid settings"),
    ],
)
def test_settings_that_no_front_end_has(changed, word):
    assert word in told(lambda: logmel([tone(440)], dataclasses.replace(SMALL, **changed)))


# ---------------------------------------------------------------- augmentation


def test_spectral_by_hand():
    # three frames of two bands; -2 is silence
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-2.0, 5.0]])[None, None].repeat(4, 1, 1, 1)
    middle = [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    u = torch.tensor([middle, [0.9, *middle[1:]], [0.5, 0.0, *middle[2:]], [0.5, 0.5, 0.9, 0.9, 0.9, 0.0]])
    seen = spectral(x, u, shift=1, gain=3.5, bands=1, frames=2, ground=-2.0)[:, 0]
    assert torch.equal(seen[0], x[0, 0])  # nothing changes
    assert seen[1].tolist() == [[-2.0, -2.0], [1.0, 2.0], [3.0, 4.0]]  # one frame later, silence before it
    assert seen[2].tolist() == [[-2.0, -1.5], [-0.5, 0.5], [-2.0, 1.5]]  # softer by 3.5, and no softer than silence
    assert seen[3].tolist() == [[0.0, 0.0], [0.0, 0.0], [-2.0, 0.0]]  # the second band and the first two frames hidden
    louder = spectral(x, torch.tensor([[0.5, 1 - 1e-7, 0, 0, 0, 0]]).repeat(4, 1), gain=1.0, ground=-2.0)
    assert louder[0, 0, 2].tolist() == pytest.approx([-2.0, 6.0], abs=1e-5)  # silence stays silence


def test_spectral_is_an_independent_loop():
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=(40, 1, 12, 9)).astype(np.float32), rng.random((40, 6)).astype(np.float32)
    seen = spectral(torch.from_numpy(x), torch.from_numpy(u), shift=3, gain=0.7, bands=4, frames=5, ground=-1.0).numpy()
    for one, draws, mine in zip(x[:, 0], u, seen[:, 0], strict=True):
        step = min(int(draws[0] * np.float32(7)), 6) - 3
        expected = np.full((12, 9), -1.0)
        for frame in range(12):
            for band in range(9):
                if 0 <= frame - step < 12 and one[frame - step, band] > -1 + 1e-4:
                    expected[frame, band] = max(-1, one[frame - step, band] + (2 * draws[1] - 1) * 0.7)
        wide, long = int(draws[2] * np.float32(5)), int(draws[4] * np.float32(6))
        left, top = int(draws[3] * np.float32(9 - wide + 1)), int(draws[5] * np.float32(12 - long + 1))
        expected[:, left : left + wide] = 0
        expected[top : top + long] = 0
        assert np.allclose(mine, expected, atol=1e-6)


def test_views_are_pure_and_every_mask_occurs(tmp_path):
    flat(tmp_path)
    task = speech(path=tmp_path, speaker="ben", seconds=0.3, mels=16)
    x = torch.from_numpy(task.data("train").inputs)
    u = torch.rand(len(x), task.draws, generator=torch.Generator().manual_seed(0))
    before, state = x.clone(), torch.get_rng_state()
    one = task.augment(x, u)
    assert torch.equal(one, task.augment(x, u)) and torch.equal(x, before) and torch.equal(state, torch.get_rng_state())
    assert torch.equal(one[7:9], task.augment(x[7:9], u[7:9])) and one.shape == x.shape and one.dtype == x.dtype
    hidden = one[:, 0] == 0
    assert set(hidden.all(1).sum(1).tolist()) == {0, 1, 2, 3} and set(hidden.all(2).sum(1).tolist()) == {0, 1, 2}
    for edge in (0.0, 1 - 2**-24):
        assert task.augment(x, torch.full_like(u, edge)).isfinite().all()


# ---------------------------------------------------------------- networks


def test_ds_cnn_has_the_papers_weights():
    # 10 x 4 x 64 + 128; four times 9 x 64 + 128 + 64 x 64 + 128; 64 x 10 + 10
    small = ds_cnn((64,) * 5, classes=10)
    assert sum(p.numel() for p in small.parameters()) == 2560 + 128 + 4 * (576 + 128 + 4096 + 128) + 650 == 23_050
    shapes = []
    for layer in small:
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, given, made: shapes.append((layer.groups, tuple(made.shape[2:]))))
    assert small.eval()(torch.zeros(2, 1, 49, 10)).shape == (2, 10)
    assert shapes == [(1, (25, 5))] + [(64, (13, 3)), (1, (13, 3))] * 4


# ---------------------------------------------------------------- task


@pytest.mark.parametrize("form", ["flat", "npz"])
def test_the_speaker_held_out_is_nowhere_else(tmp_path, form):
    (flat if form == "flat" else npz)(tmp_path)
    clips = read(tmp_path)
    task = speech(path=tmp_path, speaker="ben", seconds=0.3, mels=16, validation=0.25)
    assert check(task) == [] and task.classes == 3
    speaker = dict(zip(clips.ids, clips.speakers, strict=True))
    sides = {split: {speaker[i] for i in task.data(split).ids} for split in ("train", "validation", "test")}
    assert sides["test"] == {"ben"} and "ben" not in sides["train"] | sides["validation"]
    rows = [i for split in sides for i in task.data(split).ids]
    assert sorted(rows) == sorted(clips.ids)  # every clip once
    counts = np.bincount(task.data("validation").labels)
    assert counts.min() == counts.max() == (4 if form == "flat" else 2)  # of 16 or 8 a class
    for split in sides:
        part = task.data(split)
        assert part.inputs.dtype == np.float32 and part.inputs.shape[1:] == (1, 14, 16)
        assert part.labels.tolist() == [int(clips.labels[clips.ids.index(i)]) for i in part.ids]
    values = task.data("train").inputs
    assert abs(values.mean()) < 1e-3 and abs(values.std() - 1) < 1e-3  # of the clips to train on, and of no others
    again = speech(path=tmp_path, speaker="ben", seconds=0.3, mels=16, validation=0.25)
    assert all(
        again.data(s).ids == task.data(s).ids and np.array_equal(again.data(s).inputs, task.data(s).inputs)
        for s in sides
    )


def test_nothing_of_the_test_speaker_reaches_the_front_end(tmp_path):
    flat(tmp_path)
    one = speech(path=tmp_path, speaker="ben", seconds=0.3)
    for file in tmp_path.glob("*_ben_*.wav"):
        record(file, tone(3000, level=32000))
    two = speech(path=tmp_path, speaker="ben", seconds=0.3)
    assert one.version == two.version
    assert all(np.array_equal(one.data(s).inputs, two.data(s).inputs) for s in ("train", "validation"))


def test_values_are_the_front_ends(tmp_path):
    made = flat(tmp_path)
    task = speech(path=tmp_path, speaker="anna", seconds=0.3, mels=24)
    front = LogMel(**json.loads(task.version.split(" ", 1)[1])["frontend"])
    assert (front.rate, front.length, front.window, front.hop, front.mels, front.high) == (
        8000,
        2400,
        256,
        160,
        24,
        4000.0,
    )
    part = task.data("test")
    assert np.array_equal(part.inputs, logmel([made[i] for i in part.ids], front))


def test_without_a_speaker_the_own_test_part_is_test(tmp_path, monkeypatch):
    flat(tmp_path)
    monkeypatch.setenv("EDGEKD_SPEECH", str(tmp_path))
    task = speech(seconds=0.3)
    assert sorted({int(i[:-4].rpartition("_")[2]) for i in task.data("test").ids}) == [0, 1, 2, 3, 4]
    assert {int(i[:-4].rpartition("_")[2]) for s in ("train", "validation") for i in task.data(s).ids} == {5, 6, 7}
    monkeypatch.delenv("EDGEKD_SPEECH")
    assert "EDGEKD_SPEECH" in told(lambda: speech())


def test_splits_that_can_not_be(tmp_path):
    flat(tmp_path / "a")
    assert "'dora'" in told(lambda: speech(path=tmp_path / "a", speaker="dora")) and "carl_d" in told(
        lambda: speech(path=tmp_path / "a", speaker="dora")
    )
    flat(tmp_path / "b", speakers=("anna",))
    assert "there are 0 clips for training" in told(lambda: speech(path=tmp_path / "b", speaker="anna"))
    flat(tmp_path / "c", speakers=("anna",), takes=5)
    assert "anna" in told(lambda: speech(path=tmp_path / "c"))
    record(tmp_path / "b" / "3_ben_0.wav", tone(440))
    assert "no training clip is of the class '3'" in told(lambda: speech(path=tmp_path / "b", speaker="ben"))
    for word in ("yes", "no"):
        for speaker in ("anna", "ben"):
            record(tmp_path / "d" / word / f"{speaker}_0.wav", tone(440))
    record(tmp_path / "d" / "no" / "who.wav", tone(440))
    assert "who.wav" in told(lambda: speech(path=tmp_path / "d", speaker="ben"))


def test_settings_that_change_the_task_change_its_version(tmp_path):
    flat(tmp_path)
    choices = (
        {},
        {"speaker": "ben"},
        {"student": 32},
        {"teacher": 64},
        {"mels": 16},
        {"seconds": 0.2},
        {"validation": 0.3},
    )
    versions = [speech(**{"path": tmp_path, "seconds": 0.3, **c}).version for c in choices]
    assert len(set(versions)) == len(choices) and str(tmp_path) not in "".join(versions)


@pytest.mark.parametrize(
    "table, word",
    [({"seconds": 0.0}, "seconds"), ({"student": 12}, "student"), ({"speeker": "x"}, "did you mean `speaker`")],
)
def test_settings_are_bounded(table, word):
    _, problems = signatures.settings_of(speech, {"path": "x", **table}, "task")
    assert len(problems) == 1 and word in str(problems[0])
    assert signatures.settings_of(speech, {}, "task")[1] == []


def test_student_is_computed_in_integers(tmp_path):
    """Every layer stands between grids: the model of the file has whole-number sums throughout, and answers much as
    its float model."""
    from edgekd.quantization import calibrated
    from edgekd.quantization.torch_graph import exact, fake
    from edgekd.quantization.torch_graph.capture import capture

    flat(tmp_path)
    task = speech(path=tmp_path, speaker="ben", seconds=0.3, mels=16, student=16)
    x = torch.from_numpy(task.data("train").inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.models["student"]()
    for _ in range(30):
        model(x)  # batch statistics that are not the initial ones
    module = calibrated(model.eval(), [x])
    grid = fake.settle(module)
    weights = [site for site in grid.sites.values() if site.axis is not None]
    assert len(weights) == 1 + 4 * 2 + 1
    with torch.no_grad():
        ours, floats = exact.Settled(fake.apply(capture(model, x[:2]), grid))(x), model(x)
    assert (ours - floats).abs().max() < 0.1 * (floats - floats.mean(0)).abs().max()


def test_the_front_end_travels_with_the_bundle(tmp_path, monkeypatch):
    """From recordings to answers with the bundle's two files and onnxruntime alone: those that the run scored, of a
    speaker held out."""
    import onnxruntime
    import tiny

    import edgekd
    from edgekd import results
    from edgekd.delivery import bundle

    tiny.settle(tmp_path, monkeypatch)
    sounds = flat(tmp_path / "recordings", takes=6)
    task = {
        "use": "speech",
        "path": str(tmp_path / "recordings"),
        "speaker": "ben",
        "seconds": 0.3,
        "mels": 16,
        "student": 16,
        "teacher": 16,
    }
    stages = [{"use": "distill", "epochs": 1}, {"use": "quantize", "mode": "ptq"}]
    models = {"teacher": {"train": {"epochs": 1}}}
    gate = {"any": {"file_bytes": "max 1 MB"}}
    run = edgekd.compress(
        {"task": task, "threads": 1, "stage": stages, "model": models, "gate": gate, "control": False},
        out=tmp_path / "run",
    )
    folder, chosen = tmp_path / "run/bundles/host", run.result.targets["host"].chosen
    assert bundle.read(folder).files.keys() >= {"before.onnx", "model.onnx", "golden.npz"}
    before, model = (
        onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        for name in ("before.onnx", "model.onnx")
    )
    scored = results.load_predictions(tmp_path / f"run/predictions/{chosen}.npz")
    assert len(scored.ids) == 18 and all("_ben_" in name for name in scored.ids)
    raw = np.stack([fitted(sounds[name], 2400) for name in scored.ids]).astype(np.float32)
    (inputs,) = before.run(None, {"audio": raw})
    (answers,) = model.run(None, {"input": inputs})
    # the front end's last digits may move an input by a step
    assert np.abs(answers - scored.outputs).mean() < 0.02 * scored.outputs.std()
    (folder / "before.onnx").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(BaselineError, match="before.onnx: has"):  # it is vouched for as the model is
        edgekd.gate(folder)
