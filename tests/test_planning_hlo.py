"""Compiled programs as text: recorded lines of the TPU and GPU compilers, shortened."""

import textwrap
from pathlib import Path

import pytest

from ldm_jax.planning.collectives import Collective, collective_seconds, find_collectives
from ldm_jax.planning.compiler import bytes_accessed, shortage
from ldm_jax.planning.hlo import parse_program, shape_bytes
from ldm_jax.planning.topology import parse_topology
from ldm_jax.planning.traffic import estimate_bytes, has_loops, kernel_bytes

MESH = {"data": 8, "fsdp": 8, "tensor": 1}

TPU = (Path(__file__).parent / "golden" / "hlo" / "tpu_loop.txt").read_text()
"""A loop of five turns with the collectives of FSDP, from the TPU compiler, shortened."""

ONE = 64 * 512 * 2
WHOLE = 512 * 512 * 2


def entry(*lines: str, parameter: str = "f32[1024]{0}") -> str:
    body = "\n".join(f"  {line}" for line in (f"%p = {parameter} parameter(0)", *lines))
    return f"ENTRY %main (p: f32[1]) -> f32[1] {{\n{body}\n}}\n"


def collective(**changes: object) -> Collective:
    values: dict[str, object] = {
        "kind": "all-reduce",
        "axes": ("data",),
        "group_size": 8,
        "across_nodes": False,
        "asynchronous": False,
        "count": 1,
        "num_bytes": 800,
    }
    return Collective(**{**values, **changes})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("bf16[64,512]{1,0:T(8,128)(2,1)S(1)}", ONE),
        ("(s32[], pred[3], f8e4m3fn[8])", 15),
        ("u4[3]", 2),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_type(shape: str, size: int):
    assert shape_bytes(shape) == size


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    found = find_collectives(parse_program(TPU), MESH, None)
    assert found == [
        collective(kind="all-gather", axes=("fsdp",), count=5, num_bytes=5 * WHOLE),
        collective(kind="reduce-scatter", axes=("fsdp",), count=5, num_bytes=5 * WHOLE),
        collective(kind="all-reduce", axes=("data",), count=5, num_bytes=5 * ONE),
    ]


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}", ("fsdp",)),
        ("replica_groups=[8,8]<=[64]", ("fsdp",)),
        ("replica_groups=[8,8]<=[8,8]T(1,0)", ("data",)),
        ("replica_groups=[1,64]<=[64]", ("data", "fsdp")),
        ("replica_groups=mesh['a'=8,'b'=8] {'b'}", ("fsdp",)),
        ("replica_groups=mesh['a'=8,'b'=8] {'a'}", ("data",)),
        ("replica_groups=mesh['a'=8,'b'=8], device_ids=([8,8]T(1,0)) {'a'}", ("fsdp",)),
        ("replica_groups={}", ("data", "fsdp")),
        ("replica_groups={{0,1,2,3}}", ()),  # half an axis is no axis
    ],
)
def test_groups_in_every_notation_are_axes(groups: str, axes: tuple[str, ...]):
    text = entry(f"ROOT %r = f32[1024]{{0}} all-reduce(%p), channel_id=1, {groups}, to_apply=%add")
    (found,) = find_collectives(parse_program(text), MESH, None)
    assert found.axes == axes


def test_a_started_collective_overlaps_and_holds_its_operands():
    text = entry(
        "%s = (f32[1024]{0}, f32[8192]{0}) all-gather-start(%p), replica_groups=[8,8]<=[64], dimensions={0}",
        "ROOT %d = f32[8192]{0} all-gather-done(%s)",
    )
    expected = collective(kind="all-gather", axes=("fsdp",), asynchronous=True, num_bytes=4 * 8192)
    assert find_collectives(parse_program(text), MESH, 8) == [expected]


def test_what_the_gpu_compiler_made_synchronous_does_not_overlap():
    text = entry(
        "%s = f32[1024]{0} all-reduce-start(%p), replica_groups=[8,8]<=[8,8]T(1,0), to_apply=%add, "
        'backend_config={"collective_backend_config":{"is_sync":true}}',
        "ROOT %d = f32[1024]{0} all-reduce-done(%s)",
    )
    (found,) = find_collectives(parse_program(text), MESH, 8)
    assert (found.asynchronous, found.across_nodes, found.num_bytes) == (False, True, 4096)


def test_what_a_tpu_serves_beside_other_work_is_counted_where_it_begins():
    """The compiler writes it three times: where it begins, in the fusion that works meanwhile, and where it is done."""
    gather = "all-gather(%a), channel_id=34, replica_groups=mesh['a'=8,'b'=8] {'b'}, dimensions={0}"
    text = textwrap.dedent(f"""\
        %async_start (a: f32[1024]) -> (f32[1024], f32[8192]) {{
          %a = f32[1024]{{0}} parameter(0)
          %g = f32[8192]{{0}} {gather}
          ROOT %s = (f32[1024]{{0}}, f32[8192]{{0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
        }}

        %meanwhile (a: f32[1024]) -> (f32[1024], f32[8192]) {{
          %a = f32[1024]{{0}} parameter(0)
          %work = f32[1024]{{0}} negate(%a)
          %g = f32[8192]{{0}} {gather}
          ROOT %s = (f32[1024]{{0}}, f32[8192]{{0}}) tuple(%work, %g)
        }}

        %async_done (a: f32[1024]) -> f32[8192] {{
          %a = f32[1024]{{0}} parameter(0)
          %g = f32[8192]{{0}} {gather}
          ROOT %s = f32[8192]{{0}} custom-call(%a, %g), custom_call_target="AsyncCollectiveDone"
        }}

        """) + entry(
        "%b = (f32[1024]{0}, f32[8192]{0}) fusion(%p), kind=kCustom, calls=%async_start",
        "%m = (f32[1024]{0}, f32[8192]{0}) fusion(%p), kind=kOutput, calls=%meanwhile",
        "%d = f32[8192]{0} fusion(%p), kind=kCustom, calls=%async_done",
        "ROOT %other = f32[8192]{0} " + gather.replace("34", "35").replace("%a", "%p"),
    )
    asynchronous, waited_for = find_collectives(parse_program(text), MESH, None)
    same = {"kind": "all-gather", "axes": ("fsdp",), "num_bytes": 4 * 8192}
    assert asynchronous == collective(asynchronous=True, **same)
    assert waited_for == collective(**same)


@pytest.mark.parametrize(("stride", "turns"), [(1, 8), (2, 4), (3, 3)])
def test_a_ring_that_was_unrolled_runs_less_often(stride: int, turns: int):
    """The compiler's own loop around a product, in which a part of a sum goes from chip to chip."""
    text = textwrap.dedent(f"""\
        %body (t: (f32[1024], u32[])) -> (f32[1024], u32[]) {{
          %t = (f32[1024]{{0}}, u32[]) parameter(0)
          %x = f32[1024]{{0}} get-tuple-element(%t), index=0
          %i = u32[] get-tuple-element(%t), index=1
          %one = u32[] constant({stride})
          %next = u32[] add(%i, %one)
          %sent = f32[1024]{{0}} collective-permute(%x), channel_id=1, source_target_pairs={{{{0,1}},{{1,0}}}}
          ROOT %all = (f32[1024]{{0}}, u32[]) tuple(%sent, %next)
        }}

        %condition (t: (f32[1024], u32[])) -> pred[] {{
          %t = (f32[1024]{{0}}, u32[]) parameter(0)
          %i = u32[] get-tuple-element(%t), index=1
          %n = u32[] constant(8)
          ROOT %more = pred[] compare(%i, %n), direction=LT
        }}

        """) + entry(
        "ROOT %w = (f32[1024]{0}, u32[]) while(%p), condition=%condition, body=%body",
        parameter="(f32[1024]{0}, u32[])",
    )
    (found,) = find_collectives(parse_program(text), MESH, None)
    assert (found.count, found.num_bytes, found.axes) == (turns, turns * 4096, ("fsdp",))


def test_a_collective_of_one_chip_is_none():
    text = entry("ROOT %r = f32[1024]{0} all-reduce(%p), replica_groups=[64,1]<=[64], to_apply=%add")
    assert find_collectives(parse_program(text), MESH, None) == []


@pytest.mark.parametrize(
    ("kind", "factor"),
    [("all-reduce", 2 * 7 / 8), ("all-gather", 7 / 8), ("reduce-scatter", 7 / 8), ("collective-permute", 1.0)],
)
def test_links_need_what_a_ring_needs(kind: str, factor: float):
    seconds = collective_seconds(collective(kind=kind, num_bytes=10**9), parse_topology("v5p-64"))
    assert seconds == pytest.approx(factor * 1e9 / 200e9)  # both directions of 100 GB/s


def test_a_slice_that_is_no_ring_has_half_the_rate():
    whole, part = (collective_seconds(collective(), parse_topology(name)) for name in ("v5e-256", "v5e-16"))
    assert part == pytest.approx(2 * whole)


def test_between_nodes_gpus_have_the_network():
    inside, across = (
        collective_seconds(collective(across_nodes=across), parse_topology("h100-64")) for across in (False, True)
    )
    assert across == pytest.approx(9 * inside)  # 450 and 50 GB/s


def test_traffic_is_what_is_read_and_written():
    text = entry("%a = f32[1024]{0} negate(%p)", "ROOT %b = f32[1024]{0} add(%a, %p)")
    assert estimate_bytes(parse_program(text)) == 4096 * 2 + 4096 * 3


def test_values_in_fast_memory_are_no_traffic():
    text = entry("%a = f32[1024]{0:T(128)S(1)} negate(%p)", "ROOT %b = f32[1024]{0} add(%a, %p)")
    assert estimate_bytes(parse_program(text)) == 4096 + 4096 * 2


def test_a_fusion_that_slices_reads_the_slice_and_one_that_updates_writes_the_update():
    text = textwrap.dedent("""\
        %sliced (a: f32[100,64], i: s32[]) -> f32[64] {
          %a = f32[100,64]{1,0} parameter(0)
          %i = s32[] parameter(1)
          %row = f32[1,64]{1,0} dynamic-slice(%a, %i), dynamic_slice_sizes={1,64}
          ROOT %flat = f32[64]{0} bitcast(%row)
        }

        %updated (a: f32[100,64], u: f32[1,64], i: s32[]) -> f32[100,64] {
          %a.1 = f32[100,64]{1,0} parameter(0)
          %u = f32[1,64]{1,0} parameter(1)
          %i.1 = s32[] parameter(2)
          ROOT %put = f32[100,64]{1,0} dynamic-update-slice(%a.1, %u, %i.1)
        }

        """) + entry(
        "%i.2 = s32[] constant(3)",
        "%u.1 = f32[1,64]{1,0} constant({...})",
        "%row.1 = f32[64]{0} fusion(%p, %i.2), kind=kLoop, calls=%sliced",
        "ROOT %all = f32[100,64]{1,0} fusion(%p, %u.1, %i.2), kind=kLoop, calls=%updated",
        parameter="f32[100,64]{1,0}",
    )
    row = 64 * 4
    assert estimate_bytes(parse_program(text)) == (row + 4 + row) + (row + 4 + row)


def test_loops_are_counted_on_top_of_the_compilers_analysis():
    program = parse_program(TPU)
    assert has_loops(program)
    assert estimate_bytes(program) == 5 * estimate_bytes(program, count_loops=False)
    assert bytes_accessed(program, {"bytes accessed": 1000.0}) == (
        5000,
        "the compiler's cost analysis, times 5.00 for loops, which it counts once",
    )


def test_without_an_analysis_the_estimate_is_said_to_be_one():
    program = parse_program(entry("ROOT %a = f32[1024]{0} negate(%p)"))
    assert not has_loops(program)
    assert bytes_accessed(program, None) == (8192, "estimated from the compiled program's operands and results")
    assert bytes_accessed(program, {"bytes accessed": 9000.0}) == (9000, "the compiler's cost analysis")


GIB = 2**30


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm "
            "capacity by 4.75G.",
            20.5 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (260.00G) "
            "exceeds available HBM (95.74G).",
            262 * GIB,
            95.74 * GIB,
        ),
    ],
)
def test_too_little_memory_is_read_from_the_compilers_error(message: str, needed: float, available: float):
    memory = shortage(message, 2 * GIB)
    assert memory.peak == needed
    assert memory.available == pytest.approx(available)


def test_an_error_without_numbers_leaves_them_open():
    assert shortage("RESOURCE_EXHAUSTED: no room", GIB).peak is None


def test_kernels_of_a_tpu_count_with_their_operands_and_results():
    text = entry(
        "%rows = bf16[4,40]{1,0} slice(%p), slice={[0:4], [0:40]}",
        '%kernel = bf16[4,200]{1,0} custom-call(%rows), custom_call_target="tpu_custom_call"',
        "ROOT %a = bf16[4,200]{1,0} negate(%kernel)",
        parameter="bf16[8,40]{1,0}",
    )
    program = parse_program(text)
    assert kernel_bytes(program) == 2 * (4 * 40 + 4 * 200)
    source = "the compiler's cost analysis, and 0.0 GB of Pallas kernels, which it does not count"
    assert bytes_accessed(program, {"bytes accessed": 1000.0}) == (1000 + 1920, source)
