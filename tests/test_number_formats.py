"""How numbers are kept in fewer bits: lossless where that is promised, else unbiased, and nothing wraps or hides."""

import numpy as np
import pytest

import fusedopt
import plain_formats as plain
from cases import assert_same_bits, extreme, ordinary
from fusedopt import eight_bits, philox, rounding
from fusedopt.eight_bits import CODES
from fusedopt.storage import BLOCK, Kept

UPPER = np.arange(65536, dtype=np.uint32) << 16
LOWS = (0, 1, 2, 0x7F, 0x80, 0x81, 0xFF, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0x807F, 0x8080, 0xFF80, 0xFFFF)
FLOATS = np.concatenate([UPPER | np.uint32(low) for low in LOWS]).view(np.float32)
EVERY_NOISE = np.arange(65536, dtype=np.uint32)
TOP = float(np.finfo(np.float32).max)
# Of each kind: ties and numbers near them, the largest and the smallest, on both sides of where precision is lost.
MAGNITUDES = (0.0, 1.0, 1.001, 1 / 3, 1.00390625, 1.99999, 3.3e38, TOP, 65504.0, 65519.99, 1e-3, 6.2e-5, 6e-5, 3e-8)
SOME = [np.float32(sign * value) for value in (*MAGNITUDES, 2.0**-24, 2.0**-14, 1e-40, 1e-45) for sign in (1, -1)]


def noise(count, stream=0):
    """Random bits of one draw."""
    return philox.noise(philox.words(7, 3, 5, 0, count), stream).copy()


def halves(values, dtype):
    with np.errstate(all="ignore"):
        return values.astype(dtype)


# --- rounding to the nearest, and back


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrowing_is_numpys_cast_and_widening_is_exact(dtype):
    found, every = np.zeros(len(FLOATS), dtype), np.arange(65536, dtype=np.uint16).view(dtype)
    with np.errstate(all="ignore"):
        rounding.narrow(FLOATS, found)
    assert_same_bits(found, halves(FLOATS, dtype))
    wide = np.zeros(65536, np.float32)
    rounding.widen(every, wide)
    assert_same_bits(wide, every.astype(np.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_compensation_keeps_is_what_rounding_loses(dtype):
    high, low, back = np.zeros(len(FLOATS), dtype), np.zeros(len(FLOATS), dtype), np.zeros(len(FLOATS), np.float32)
    with np.errstate(all="ignore"):
        rounding.compensate(FLOATS, high, low)
        lost = FLOATS - halves(FLOATS, dtype).astype(np.float32)
    assert_same_bits(high, halves(FLOATS, dtype))
    assert_same_bits(low, halves(lost, dtype))
    rounding.compensated(high, low, back)
    with np.errstate(all="ignore"):
        assert_same_bits(back, high.astype(np.float32) + low.astype(np.float32))


# --- a float32 in two parts


def test_a_split_float32_comes_back_to_the_bit():
    high, low, back = np.zeros(len(FLOATS), "bfloat16"), np.zeros(len(FLOATS), np.int16), np.zeros_like(FLOATS)
    rounding.split(FLOATS, high, low)
    expected = plain.split(FLOATS, "int16")
    assert_same_bits(high.view(np.uint16), expected[0].view(np.uint16))
    assert_same_bits(low, expected[1])
    rounding.joined(high, low, back)
    number = ~np.isnan(FLOATS)
    assert (back.view(np.uint32)[number] == FLOATS.view(np.uint32)[number]).all()
    assert (back.view(np.uint32)[~number] == rounding.NAN).all()
    assert np.isnan(high[~number].astype(np.float32)).all()


def test_the_visible_half_is_the_nearest_but_in_the_middle():
    high, low = np.zeros(len(FLOATS), "bfloat16"), np.zeros(len(FLOATS), np.int16)
    rounding.split(FLOATS, high, low)
    differs = high.view(np.uint16) != halves(FLOATS, "bfloat16").view(np.uint16)
    differs &= ~np.isnan(FLOATS)
    bits = FLOATS.view(np.uint32)[differs]
    assert differs.sum() == 65536 // 2 - 256 // 2  # every tie with an even upper half that is a number
    assert (bits & 0x1FFFF == 0x8000).all()


@pytest.mark.parametrize("low", [np.int16, np.int8])
def test_any_two_parts_are_the_number_of_the_formula(low):
    """Also those that no split makes: a state dict may hold them."""
    parts = np.arange(np.iinfo(low).min, np.iinfo(low).max + 1, 1 if low is np.int8 else 251).astype(low)
    high = np.repeat((UPPER >> 16).astype(np.uint16)[::17], len(parts)).view("bfloat16")
    parts = np.tile(parts, len(high) // len(parts))
    back = np.zeros(len(high), np.float32)
    rounding.joined(high, parts, back)
    assert (back.view(np.uint32) == plain.joined(high, parts).view(np.uint32)).all()


def test_weights_without_a_remainder_are_themselves():
    high = (UPPER >> 16).astype(np.uint16).view("bfloat16")
    back = np.zeros(len(high), np.float32)
    for low in (np.int16, np.int8):
        rounding.joined(high, np.zeros(len(high), low), back)
        assert (back.view(np.uint32) == UPPER).all()


@pytest.mark.parametrize("drawn", [False, True])
def test_24_bits_of_a_float32_come_back(drawn):
    high, low, back = np.zeros(len(FLOATS), "bfloat16"), np.zeros(len(FLOATS), np.int8), np.zeros_like(FLOATS)
    bits = noise(len(FLOATS)) if drawn else None
    if drawn:
        rounding.split_stochastically(FLOATS, high, low, bits.copy())
    else:
        rounding.split(FLOATS, high, low)
    expected = plain.split(FLOATS, "int8", bits.astype(np.int64) if drawn else None)
    assert_same_bits(high.view(np.uint16), expected[0].view(np.uint16))
    assert_same_bits(low, expected[1])
    rounding.joined(high, low, back)
    number = np.isfinite(FLOATS) & np.isfinite(back)
    steps = back.view(np.uint32)[number].astype(np.int64) - FLOATS.view(np.uint32)[number]
    assert np.abs(steps).max() <= (255 if drawn else 128)
    exact = number & (FLOATS.view(np.uint32) & 0xFF == 0)
    assert (back.view(np.uint32)[exact] == FLOATS.view(np.uint32)[exact]).all()


# --- random rounding


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_random_rounding_takes_one_of_the_two_neighbours(dtype):
    found, drawn = np.zeros(len(FLOATS), dtype), noise(len(FLOATS))
    with np.errstate(all="ignore"):
        rounding.narrow_stochastically(FLOATS, found, drawn.copy())
        assert_same_bits(found, plain.stochastic(FLOATS, dtype, drawn.astype(np.int64)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_half_precision_holds_stays_whatever_is_drawn(dtype):
    every = np.arange(65536, dtype=np.uint16).view(dtype)
    values, found = every.astype(np.float32), np.zeros(65536, dtype)
    for drawn in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
        with np.errstate(invalid="ignore"):  # of NaNs
            rounding.narrow_stochastically(values, found, np.full(65536, drawn, np.uint32))
            assert_same_bits(found, every)


def _share(value, dtype):
    """The part of 65,536 that random rounding sees of what is dropped: all of it but in float16's small numbers."""
    return 2.0**-40 if dtype == "float16" and abs(value) < 2.0**-14 else 0.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("value", SOME, ids=str)
def test_random_rounding_is_right_on_average(dtype, value):
    """Over all 65,536 draws, exactly; float16's small numbers to 2^-16 of a step, where what is below is cut off."""
    found = np.zeros(65536, dtype)
    with np.errstate(over="ignore"):
        rounding.narrow_stochastically(np.full(65536, value), found, EVERY_NOISE.copy())
    average = found.astype(np.float64)
    largest = {"float16": 65504.0, "bfloat16": 255 * 2.0**120}[dtype]
    if abs(value) > largest:  # between it and infinity: what is beyond both, in their order
        assert set(np.abs(average)) <= {largest, np.inf}
        return
    assert abs(average.mean() - float(value)) <= _share(value, dtype)
    assert (np.signbit(average) == np.signbit(value)).all()


@pytest.mark.parametrize("value", SOME, ids=str)
def test_24_bits_are_right_on_average(value):
    high, low, back = np.zeros(65536, "bfloat16"), np.zeros(65536, np.int8), np.zeros(65536, np.float32)
    rounding.split_stochastically(np.full(65536, value), high, low, EVERY_NOISE.copy())
    rounding.joined(high, low, back)
    if np.isfinite(back).all():
        assert back.astype(np.float64).mean() == float(value)
    else:
        assert abs(value) == TOP


# --- random words

# kat_vectors of Random123: rounds, counter, key, words.
KNOWN = """
7 00000000 00000000 00000000 00000000 00000000 00000000 5f6fb709 0d893f64 4f121f81 4f730a48
7 ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 5207ddc2 45165e59 4d8ee751 8c52f662
7 243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 4dfccaba 190a87f0 c47362ba b6b5242a
10 00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8
10 ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd
10 243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1
"""
ANSWERS = [
    (int(rounds), *(int(word, 16) for word in words)) for rounds, *words in map(str.split, KNOWN.split("\n")[1:-1])
]


@pytest.mark.parametrize("arrays", [(), (0,), (2,), (0, 1), (1, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_philox_gives_the_published_answers(answer, arrays):
    """Whichever words of the counter are arrays and which are one number for all."""
    rounds, counter, key, expected = answer[0], answer[1:5], answer[5:7], answer[7:]
    given = tuple(np.full(3, word, np.uint64) if place in arrays else word for place, word in enumerate(counter))
    found = philox.philox(given, key, rounds)
    assert all((np.asarray(word) == right).all() for word, right in zip(found, expected, strict=True))
    assert plain.philox(counter, key, rounds) == expected


@pytest.mark.parametrize(("seed", "step", "number", "first"), [(0, 1, 0, 0), (2**53 - 1, 2**33 + 7, 9, 2**34 - 8)])
def test_words_are_those_of_seed_step_parameter_and_element(seed, step, number, first):
    found = philox.words(seed, step, number, first, 23)
    key = seed & plain.MASK, seed >> 32
    quads = range(first // 4, first // 4 + 6)
    expected = [w for q in quads for w in plain.philox((q & plain.MASK, q >> 32, step & plain.MASK, number), key, 7)]
    assert found.tolist() == expected[:23]


def test_words_do_not_depend_on_how_the_elements_are_cut():
    whole = philox.words(5, 2, 1, 0, 5000).copy()
    for cut in (4, 128, 4096):
        assert (philox.words(5, 2, 1, 0, cut) == whole[:cut]).all()
        assert (philox.words(5, 2, 1, cut, 5000 - cut) == whole[cut:]).all()


def test_streams_are_independent_of_each_other_and_uniform():
    """Correlations of n uniform pairs are below 5 / sqrt(n), but for one in a million."""
    count = 1 << 18
    words = philox.words(1, 1, 0, 0, count)
    drawn = [philox.noise(words, stream).astype(np.float64) / 65536 - 0.5 for stream in range(4)]
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 5 / np.sqrt(count)
    for one in drawn:
        assert abs(one.mean()) < 5 / np.sqrt(12 * count)
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 5 / np.sqrt(count)


# --- 8 bits

each_code = pytest.mark.parametrize("code", CODES.values(), ids=CODES)
SCALES = [2.0**e for e in (-80, -79, -60, -1, 0, 1, 60, 127)]
UNEVEN = [1.1e-24, 1.37e-20, 0.3, 1.9999999, 3.3e38, TOP]


def encode(values, code, drawn):
    codes, scales = np.zeros(len(values), np.uint8), np.zeros(-(-len(values) // BLOCK), np.float32)
    eight_bits.encode_blocks(values, codes, scales, code, np.array(drawn, np.uint32))
    return codes, scales


def decode(codes, scales, code):
    values = np.zeros(len(codes), np.float32)
    with np.errstate(all="ignore"):
        eight_bits.decoded(codes, eight_bits.spread(scales, 0, len(codes)), code, values)
    return values


def magnitudes_of(code, scale):
    """The values of all codes without a sign."""
    codes = np.arange(code.largest + 1, dtype=np.uint8)
    return decode(codes, np.full(-(-len(codes) // BLOCK), scale, np.float32), code)


@each_code
@pytest.mark.parametrize("scale", [*SCALES, *UNEVEN])
def test_all_codes_have_their_own_value_in_order(code, scale):
    values = magnitudes_of(code, scale)
    assert values[0] == 0
    assert values[-1] == np.float32(scale)
    assert (np.diff(values) > 0).all()
    assert_same_bits(values, plain.values_of(code).astype(np.float32) * np.float32(scale))


def encoded_again(code, scale, drawn):
    """The code of the value of each code, in blocks that have this scale."""
    values, again = magnitudes_of(code, scale), []
    for some in np.array_split(values, 5):
        block = np.full(BLOCK, values[-1])  # the largest decides the scale
        block[: len(some)] = some
        codes, scales = encode(block, code, np.full(BLOCK, drawn))
        assert scales.tolist() == [values[-1]]
        again += codes[: len(some)].tolist()
    return again


@each_code
@pytest.mark.parametrize("scale", [*SCALES, *UNEVEN])
def test_what_was_decoded_is_encoded_as_it_was(code, scale):
    """Whatever is drawn where the scale is a power of two; where two roundings come before, but for one draw of 2^15:
    the extreme ones are left out."""
    for drawn in (0, 0xFFFF) if scale in SCALES else (4, 0x8000, 0xFFFB):
        assert encoded_again(code, scale, drawn) == list(range(code.largest + 1))


@each_code
def test_a_sign_is_kept_but_that_of_zero(code):
    if not code.signed:
        return
    block = np.array([-0.0, 0.0, -1.0, 1.0, -1e-30, 0.5, -0.5] + [0.0] * 121, np.float32)
    codes, scales = encode(block, code, np.full(BLOCK, 0xFFFF))
    assert codes[:5].tolist() == [0, 0, 255, 127, 0]
    assert (
        np.signbit(decode(codes, scales, code)) == [False, False, True, False, False, False, True] + [False] * 121
    ).all()


@each_code
@pytest.mark.parametrize("values", [ordinary, extreme])
@pytest.mark.parametrize("size", [1, 127, 128, 129, 1000])
def test_codes_and_scales_are_those_of_the_plain_search(code, values, size):
    some = values(size, "float32", 3)
    some = some if code.signed else np.abs(some)
    drawn = noise(size, 1)
    found, expected = encode(some, code, drawn), plain.encoded(some, code, drawn.astype(np.int64))
    assert found[0].tolist() == expected[0].tolist()
    assert_same_bits(found[1], expected[1])
    assert_same_bits(decode(*found, code), plain.decoded(*found, code))


VALUES = (0.999, 0.7, 0.5001, 0.26, 2.0**-5, 1.7e-3, 3.3 * 2.0**-13, 1.6 * 2.0**-15, 0.3 * 2.0**-15, 1.9 * 2.0**-29)


@each_code
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("scale", [1.0, 0.77])
def test_codes_are_right_on_average(code, value, scale):
    """Over all draws, to the 2^-16 of a step that 16 bits can say."""
    value, table = np.float32(value * scale), plain.values_of(code) * np.float32(scale)
    draws = np.repeat(EVERY_NOISE, 2)
    block = np.tile(np.array([value, scale], np.float32), len(EVERY_NOISE))
    found = decode(*encode(block, code, draws), code)[::2].astype(np.float64)
    if not code.signed and value < table[1]:
        assert set(found) == {np.float32(table[1])}  # never zero
        return
    below = np.searchsorted(table, value, side="right") - 1
    assert set(found) <= set(table[below : below + 2].astype(np.float32))
    assert abs(found.mean() - value) <= (table[below + 1] - table[below]) * 2.0**-16 + value * 2.0**-23


@each_code
def test_zero_is_exactly_zero_whatever_is_drawn(code):
    for drawn in (0, 0xFFFF):
        codes, scales = encode(np.zeros(200, np.float32), code, np.full(200, drawn))
        assert (not codes.any(), not scales.any()) == (True, True)
        assert not decode(codes, scales, code).any()
        block = np.zeros(BLOCK, np.float32)
        block[0] = 3.0
        assert not decode(*encode(block, code, np.full(BLOCK, drawn)), code)[1:].any()


@each_code
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_a_block_with_what_is_no_number_is_all_nan_and_the_next_is_not(code, bad):
    values = np.ones(2 * BLOCK, np.float32)
    values[5] = bad
    codes, scales = encode(values, code, np.zeros(2 * BLOCK))
    assert np.isnan(scales).tolist() == [True, False]
    found = decode(codes, scales, code)
    assert np.isnan(found[:BLOCK]).all()
    assert (found[BLOCK:] == 1).all()
    assert not codes[:BLOCK].any()  # the same on every chip


@pytest.mark.parametrize("code", [code for code in CODES.values() if not code.signed])
def test_what_is_never_negative_never_becomes_zero(code):
    """Down to 2^-149 of the largest, where their quotient would be less than any float32."""
    for largest in (TOP, 1.0, 1e-20, 2.0**-120, 1e-45):
        block = np.full(BLOCK, largest, np.float32)
        block[1:40] = np.maximum(largest * 2.0 ** -np.linspace(1, 148, 39), 2.0**-149)
        found = decode(*encode(block, code, np.zeros(BLOCK)), code)
        assert (found > 0).all()


@each_code
@pytest.mark.parametrize("largest", [2.0**-80, 1.1e-24, 1e-20, 0.3, 1.0, 1.9999999, 3.0, 1e30, TOP])
def test_the_largest_of_a_block_is_kept_exactly(code, largest):
    for drawn in (0, 0xFFFF if largest < TOP else 0xFFF0):  # 1 / TOP is denormal, of 21 bits
        codes, scales = encode(np.full(BLOCK, largest, np.float32), code, np.full(BLOCK, drawn))
        assert set(codes) == {code.largest}
        assert set(decode(codes, scales, code)) == {np.float32(largest)}


@each_code
@pytest.mark.parametrize("largest", [1e-45, 1e-40, 1.17e-38, 1e-30])
def test_a_scale_is_so_large_that_no_magnitude_is_denormal(code, largest):
    codes, scales = encode(np.full(BLOCK, largest, np.float32), code, np.full(BLOCK, 0x8000))
    assert scales.tolist() == [2.0**-80]
    found = float(decode(codes, scales, code)[0])
    table = plain.values_of(code) * 2.0**-80
    assert found in (np.float32(table[1]), 0.0) or abs(found / largest - 1) < 0.25


@each_code
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 3e-9])
def test_a_new_state_is_full_of_the_nearest_code(code, value):
    kept = Kept("uint8", codes=next(name for name, of in CODES.items() if of is code), stochastic=True)
    byte, scale = eight_bits.encoded_constant(value, kept)
    found = float(decode(np.array([byte], np.uint8), np.array([scale], np.float32), code)[0])
    assert abs(found - np.float32(value)) <= np.float32(value) * 2.0**-24


# --- noise of a step


def test_a_step_draws_for_the_parameters_number_and_its_own():
    """Two parameters alike, and two steps, are rounded otherwise; the same ones again are not."""

    def parameters(seed):
        some = [fusedopt.Parameter(np.ones(4096, "bfloat16")) for _ in range(2)]
        optimizer = fusedopt.SGD(some, lr=0.01, stochastic_rounding=True, seed=seed)
        found = []
        for _ in range(2):
            for parameter in some:
                parameter.data[...] = 1
                parameter.grad = np.full(4096, 0.1, "bfloat16")
            optimizer.step()
            found += [parameter.data.tobytes() for parameter in some]
        return found

    assert parameters(1) == parameters(1)
    assert len(set(parameters(1) + parameters(2))) == 8
