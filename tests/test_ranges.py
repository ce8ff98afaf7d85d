"""Histograms of streams, and the ranges that calibration takes from them: by hand, and against brute force."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekd.components import find, names
from edgekd.quantization import calibrated, parameters
from edgekd.quantization.histogram import BINS, Histogram
from edgekd.quantization.torch_graph import fake, modules
from edgekd.ranges.entropy import entropy
from edgekd.ranges.minmax import minmax
from edgekd.ranges.mse import mse
from edgekd.ranges.percentile import percentile

ALL = {name: find("ranges", name) for name in names("ranges")}


def histogram(*batches):
    found = Histogram()
    for batch in batches:
        found.add(np.asarray(batch, np.float32))
    return found


def slow_entropy(found, levels, tries):
    edges, counts, best, chosen = found.edges.tolist(), found.counts.tolist(), np.inf, None
    for t in np.linspace(1, 2 / tries, tries):
        low, high = min(found.low, 0) * t, max(found.high, 0) * t
        inside = [k for k in range(BINS) if edges[k + 1] > low and edges[k] < high]
        if len(inside) < levels:
            break
        held = [counts[k] for k in inside]
        groups = [[j for j in range(len(held)) if j * levels // len(held) == g and held[j]] for g in range(levels)]
        kept = [0.0] * len(held)
        for group in groups:
            for j in group:
                kept[j] = sum(held[i] for i in group) / len(group)
        moved = [float(n) for n in held]
        moved[0] += sum(counts[: inside[0]])
        moved[-1] += sum(counts[inside[-1] + 1 :])
        whole, left = sum(moved), sum(kept)
        pairs = [(m / whole, max(k / left, 1e-12)) for m, k in zip(moved, kept, strict=True) if m]
        chance = (sum(map(len, groups)) - sum(map(bool, groups))) / (2 * sum(counts))
        divergence = sum(p * np.log(p / q) for p, q in pairs) - chance
        if divergence < best * (1 - 1e-9):
            best, chosen = divergence, (low, high)
    return chosen


class TestHistogram:
    @given(
        st.lists(st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=1, max_size=30), min_size=1, max_size=6)
    )
    @settings(max_examples=60, deadline=None)
    def test_counts_every_value_in_its_bin_whatever_the_order(self, batches):
        found, values = histogram(*batches), np.concatenate([np.asarray(b, np.float32) for b in batches])
        assert found.total == len(values) and found.zeros == (np.abs(values) < 2.0**-100).sum()
        assert (found.low, found.high) == (values.min(), values.max())
        assert np.abs(values).max() < (found.width or 2.0**-100)
        other = histogram(*batches[::-1])
        assert (other.width, other.zeros) == (found.width, found.zeros) and np.array_equal(other.counts, found.counts)
        if found.width:
            centers = (found.edges[1:] + found.edges[:-1]) / 2
            kept = np.sort(np.repeat(centers, found.counts))
            assert np.abs(kept - np.sort(values[np.abs(values) >= 2.0**-100])).max() <= found.width / BINS  # half a bin

    def test_doubling_merges_pairs(self):
        found = histogram([-1.0, -0.5, 0.0, 0.25, 1.0], [3.0])
        assert found.width == 4.0 and found.counts.sum() == 5 and found.zeros == 1
        for value in (-1.0, -0.5, 0.25, 1.0, 3.0):
            inside = (found.edges[:-1] <= value) & (value < found.edges[1:])
            assert found.counts[inside].tolist() == [1], value

    def test_zeros_before_the_first_number(self):
        found = histogram([0.0] * 7, [2.0])
        # 2 of [0, 4)
        assert (
            found.zeros == 7
            and found.counts[BINS // 2 :].nonzero()[0].tolist() == [BINS // 4]
            and found.counts.sum() == 1
        )

    def test_size_is_fixed(self):
        found = histogram(*[np.random.default_rng(i).normal(0, 10**i, 1000) for i in range(8)])
        assert found.counts.shape == (BINS,) and found.counts.sum() == 8000


class TestRanges:
    @pytest.mark.parametrize("name", ALL)
    def test_never_outside_of_what_was_seen(self, name):
        for values in (
            [0.0],
            [0.0, 0.0],
            [5.0],
            [-3.0, -1.0],
            np.linspace(0, 1, 1000),
            np.random.default_rng(0).normal(0, 1, 5000),
        ):
            found = histogram(values)
            low, high = ALL[name](found)
            assert np.isfinite([low, high]).all() and low <= high
            assert min(low, 0) >= min(found.low, 0) - 1e-12 and max(high, 0) <= max(found.high, 0) + 1e-12

    def test_minmax(self):
        assert minmax(histogram([1.0, -2.0], [7.5])) == (-2.0, 7.5)

    def test_percentile_by_hand(self):
        values = np.linspace(0, 1000, 10001)  # one value each 0.1: 98 % leave 100 values off each end
        low, high = percentile(histogram(values), share=98)
        width = 2 * 1024 / BINS
        assert low == pytest.approx(10, abs=width) and high == pytest.approx(990, abs=width)
        assert percentile(histogram(values), share=100) == (0.0, 1000.0)
        oracle = np.percentile(values, [1, 99])
        assert (low, high) == pytest.approx(tuple(oracle), abs=width)

    def test_mse_is_the_best_of_a_brute_force_on_the_values(self):
        """Rounding every value, no histogram: no clipping range does better by more than the bins' width explains."""
        rng = np.random.default_rng(3)
        for values in (
            rng.laplace(0, 1, 20000),
            np.abs(rng.normal(0, 1, 20000)),
            np.concatenate([rng.normal(0, 1, 20000), [60.0]]),
        ):
            for bits in (4, 8):

                def error(low, high, values=values, bits=bits):
                    scale, zero = parameters.scale_and_zero_point(low, high, 2**bits - 1)
                    return (
                        ((np.clip(np.round(values / scale) + zero, 0, 2**bits - 1) - zero) * scale - values)
                        .__pow__(2)
                        .mean()
                    )

                low, high = mse(histogram(values), bits=bits)
                best = min(error(min(values.min(), 0) * t, values.max() * t) for t in np.linspace(0.01, 1, 300))
                assert error(low, high) <= 1.06 * best, (bits, error(low, high), best)
        # the outlier costs most of three bits, little of eight
        assert mse(histogram(values), bits=3)[1] < 20 < mse(histogram(values), bits=8)[1]

    def test_entropy_keeps_a_uniform_whole_and_gives_up_an_outlier(self):
        rng = np.random.default_rng(4)
        assert entropy(histogram(rng.uniform(0, 1, 50000)))[1] > 0.95
        low, high = entropy(histogram(np.concatenate([rng.normal(0, 1, 50000), [-30.0, 30.0]])))
        assert 2 < high < 15 and -15 < low < -2

    def test_entropy_against_loops_over_bins(self):
        """Written from the docstring, bin by bin: shapes of one and two signs, with outliers on either side, of which
        some are given up."""
        shares = []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            size = 20000
            values = [
                rng.normal(0, 1, size),
                rng.exponential(1, size),
                rng.uniform(-1, 2, size),
                rng.normal(2, 0.3, size) ** 3,
            ][seed % 4]
            found = histogram(np.append(values, [-4.0 * seed, 6.0 * seed, 20.0][: seed % 4]))
            bits, tries = 2 + seed % 5, 7 + seed
            made = entropy(found, bits=bits, tries=tries)
            assert made == slow_entropy(found, 2**bits, tries)
            shares.append(round(made[1] / found.high, 3))
        assert len(set(shares)) > 4, shares

    def test_entropy_by_hand(self):
        """Four levels over eighths of [0, 1], of the ranges to 1, 5/6, 2/3 and 1/2. Over the lower half they hold four
        constants: no loss. With values far above, that range moves them onto its end: 2/20 of all into one bin, 0.1
        ln(0.1 / 1.1e-4) = 0.68, and to 1 the two levels of {8, 1} lose 18/20 (16/18 ln(8 / 4.5) + 2/18 ln(1 / 4.5)) =
        0.31."""
        found = Histogram(low=0.0, high=1.0, width=1.0)
        found.counts[BINS // 2 :] = np.repeat([8000, 1000, 8000, 1000, 0, 0, 0, 0], BINS // 16)
        assert entropy(found, bits=2, tries=4) == (0.0, 0.5)
        found.zeros = 10**7
        assert entropy(found, bits=2, tries=4) == (0.0, 0.5), "what every grid holds exactly decides nothing"
        found.counts[-BINS // 16 :] = 2000
        assert entropy(found, bits=2, tries=4) == (0.0, 1.0)

    @pytest.mark.parametrize("name", ALL)
    def test_the_order_of_samples_changes_nothing(self, name):
        values = np.random.default_rng(5).standard_t(3, (8, 500)).astype(np.float32)
        whole = ALL[name](histogram(*values))
        for order in ([7, 3, 1, 0, 2, 6, 5, 4], range(7, -1, -1)):
            assert ALL[name](histogram(*values[list(order)])) == whole
        assert ALL[name](histogram(values)) == whole

    @pytest.mark.parametrize("name", ALL)
    def test_loses_little_against_the_extremes(self, name):
        """Signal to noise on what networks hold: cut at zero, nearly so, on both sides, with far values."""
        rng = np.random.default_rng(6)
        normal = rng.normal(0, 1, 100000).astype(np.float32)
        drawn = {
            "relu": np.maximum(normal, 0), "sparse": np.maximum(normal - 1, 0), "relu6": np.clip(3 * normal, 0, 6),
            "gelu": nn.functional.gelu(torch.from_numpy(normal)).numpy(), "symmetric": normal,
            "heavy": rng.laplace(0, 1, 100000).astype(np.float32),
            "heavier": rng.standard_t(3, 100000).astype(np.float32),
        }  # fmt: skip
        for kind, values in drawn.items():
            decibels = []
            for part in (ALL[name], minmax):
                scale, zero = parameters.scale_and_zero_point(*part(histogram(*np.split(values, 10))), 255)
                rounded = (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale
                decibels.append(
                    10 * np.log10(np.square(values, dtype=float).sum() / np.square(rounded - values, dtype=float).sum())
                )
            assert decibels[0] > decibels[1] - (6 if name == "percentile" or kind == "heavier" else 1), (kind, decibels)


class TestCalibration:
    def net(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

    @pytest.mark.parametrize("name", ALL)
    def test_sites_take_the_range_of_all_batches(self, name):
        x = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
        module = calibrated(self.net(), x.split(50), ranges=name)
        (value,) = [v for v in fake.parts(module, modules.Value) if v.limits.output]
        outputs = self.net()(x).detach().numpy()
        low, high = ALL[name](histogram(*np.split(outputs, 6)), **({"bits": 8} if name in ("mse", "entropy") else {}))
        assert (value.scale.item(), value.zero_point.item()) == pytest.approx(
            parameters.scale_and_zero_point(low, high, 255), rel=1e-5
        )

    def test_memory_does_not_grow_with_the_samples(self):
        """What calibration holds at its peak with 40 times the batches."""
        net, peaks = self.net(), []
        for batches in (3, 3, 120):
            stream = (torch.randn(64, 6) for _ in range(batches))
            tracemalloc.start()
            calibrated(net, stream)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        # the first run also fills torch's caches; to keep the values would be a quarter more
        assert peaks[2] < 1.15 * peaks[1], peaks

    def test_no_data_is_refused(self):
        from edgekd.errors import RunFailed
        from edgekd.quantization.torch_graph.calibrate import calibrate
        from edgekd.quantization.torch_graph.capture import capture

        with pytest.raises(RunFailed, match="saw no values at `"):
            calibrate(fake.insert(capture(self.net(), torch.randn(2, 6))), [])
