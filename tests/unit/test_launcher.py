"""One script under every launcher; a setup that would silently train N separate runs is refused."""

import pytest

from tinyimnet.distributed import launcher, process_group, slurm
from tinyimnet.errors import UserError

SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "12345",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08,12]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}


TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_tasks_of_srun_get_the_variables_of_torchrun() -> None:
    environ = dict(SRUN)
    launcher.map_environment(environ)
    expected = {
        "RANK": "3",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07",
    }
    assert expected.items() <= environ.items()
    assert 10000 <= int(environ["MASTER_PORT"]) < 30000


def test_a_requeued_job_takes_another_port() -> None:
    first, second = dict(SRUN), {**SRUN, "SLURM_RESTART_COUNT": "1"}
    next_job = {**SRUN, "SLURM_JOB_ID": str(int(SRUN["SLURM_JOB_ID"]) + 1)}
    for environ in (first, second, next_job):
        launcher.map_environment(environ)
    assert len({environ["MASTER_PORT"] for environ in (first, second, next_job)}) == 3


@pytest.mark.parametrize(
    "changes",
    [TORCHRUN, {"SLURM_NTASKS": "1"}, {"SLURM_STEP_ID": None}, {"SLURM_STEP_NUM_TASKS": "1"}],
    ids=["launcher", "one-task", "no-step", "salloc's own step"],
)
def test_in_all_other_cases_the_environment_is_unchanged(changes: dict) -> None:
    environ = {key: value for key, value in {**SRUN, **changes}.items() if value is not None}
    before = dict(environ)
    launcher.map_environment(environ)
    assert environ == before


@pytest.mark.parametrize(
    "nodelist, host", [("gpu[07-09,12],cpu1", "gpu07"), ("node1", "node1"), ("a,b", "a"), ("n[3]", "n3")]
)
def test_the_first_host_of_a_node_list_is_the_host_of_rank_0(nodelist: str, host: str) -> None:
    assert slurm.first_host(nodelist) == host


def test_an_empty_nodelist_is_refused() -> None:
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST is '' and names no host; set MASTER_ADDR"):
        slurm.first_host("")


def test_the_number_of_tasks_on_a_node() -> None:
    assert [slurm.tasks_on_node("4(x2),1", node) for node in range(3)] == [4, 4, 1]
    with pytest.raises(UserError, match="SLURM_STEP_TASKS_PER_NODE is 'many'"):
        slurm.tasks_on_node("many", 0)


def test_a_group_smaller_than_world_size_is_refused() -> None:
    with pytest.raises(UserError, match="WORLD_SIZE is 4 but the process group has size 1"):
        process_group.check_world(1, {"WORLD_SIZE": "4"})
    process_group.check_world(4, {"WORLD_SIZE": "4"})
    process_group.check_world(1, {})


def test_one_group_per_node_is_refused() -> None:
    with pytest.raises(UserError, match="srun started 2 launchers but this group has 1"):
        launcher.check_launcher({"GROUP_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2", "RANK": "0"})
    launcher.check_launcher({"GROUP_WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "2", "RANK": "0"})
