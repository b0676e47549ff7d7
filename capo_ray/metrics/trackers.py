"""The optional trackers, each importing its package only when it is made."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capo_ray.config.base import flat_keys
from capo_ray.metrics.told import COLUMNS, to_markdown, to_rows
from capo_ray.runs.reading import run_id_of

RUN_ID = "capo_ray.run_id"  # MLflow's tag


class TensorBoardTracker:
    """Figures and transcripts as TensorBoard events under `directory`; what was shown after `resume_from` is hidden.

    Written by tensorboard's own event writer: the one in torch.utils would import torch into the driver.
    """

    def __init__(self, directory: Path, resume_from: int | None = None) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2, summary_pb2.Summary
        self._metadata, self._tensor = summary_pb2.SummaryMetadata, tensor_pb2.TensorProto
        self._writer = EventFileWriter(str(directory))
        if resume_from is not None:
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._writer.add_event(self._event.Event(wall_time=time.time(), step=resume_from + 1, session_log=start))

    def log(self, metrics: Mapping[str, float], *, update: int) -> None:
        """Add the finite figures and flush, so that a live page shows them."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in _finite(metrics).items()]
        event = self._event.Event(wall_time=time.time(), step=update, summary=self._summary(value=values))
        self._writer.add_event(event)
        self._writer.flush()

    def show(self, line: Mapping[str, Any]) -> None:
        """Add a transcript's line to the page of texts."""
        text = self._tensor(dtype="DT_STRING", string_val=[to_markdown(line).encode()])
        plugin = self._metadata.PluginData(plugin_name="text")
        value = self._summary.Value(tag="transcripts", metadata=self._metadata(plugin_data=plugin), tensor=text)
        summary = self._summary(value=[value])
        self._writer.add_event(self._event.Event(wall_time=time.time(), step=line["update"], summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbTracker:
    """One Weights & Biases run, named like the run directory and taken up again on resume.

    Its id there has the run's own beside the name: under one id a second run would take the first one's place.
    """

    def __init__(self, project: str, run_dir: Path, run_config: Mapping[str, Any], resumed: bool = False) -> None:
        import wandb

        self._table: Any = wandb.Table
        self._shown: tuple[int, list[list[Any]]] = (-1, [])  # update, rows of its table so far
        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            id=_id_of(run_dir),
            dir=str(run_dir),
            config=dict(run_config),
            resume="allow" if resumed else None,
        )

    def log(self, metrics: Mapping[str, float], *, update: int) -> None:
        """Send the finite figures as step `update`."""
        self._run.log(_finite(metrics), step=update)

    def show(self, line: Mapping[str, Any]) -> None:
        """Add a transcript's line to the table of its update."""
        update, rows = self._shown
        rows = [*(rows if update == line["update"] else []), *map(list, to_rows(line))]
        self._shown = (line["update"], rows)
        self._run.log({"transcripts": self._table(columns=list(COLUMNS), data=rows)}, step=line["update"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TrackioTracker(WandbTracker):
    """One Trackio run in the store on this machine (TRACKIO_DIR), named like the run directory; its calls are wandb's.

    Its own look at processors and devices is left out: that is of the driver's machine alone.
    """

    def __init__(self, project: str, run_dir: Path, run_config: Mapping[str, Any], resumed: bool = False) -> None:
        import trackio

        self._table = trackio.Table
        self._shown = (-1, [])
        self._run = trackio.init(
            project=project,
            name=run_dir.name,
            config=flat_keys(run_config),
            resume="allow" if resumed else "never",
            auto_log_gpu=False,
            auto_log_cpu=False,
        )


class MlflowTracker:
    """One MLflow run in the experiment `project`, named like the run directory; on resume the one tagged with the run's
    id, or, of before there were tags, the newest of that name.

    The tracking URI comes from MLFLOW_TRACKING_URI. Parameters are those of the first session: MLflow lets none change.
    """

    def __init__(self, project: str, run_dir: Path, run_config: Mapping[str, Any], resumed: bool = False) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        experiment = self._mlflow.set_experiment(project)
        own = run_id_of(run_dir)
        if resumed:
            asked = (f'tags."{RUN_ID}" = "{own}"', f'attributes.run_name = "{run_dir.name}"')
            find = self._mlflow.MlflowClient().search_runs
            found = [run for one in asked for run in find([experiment.experiment_id], one)]
            if its := [run for run in found if run.data.tags.get(RUN_ID, own) == own]:
                self._mlflow.start_run(run_id=its[0].info.run_id)
                return
        self._mlflow.start_run(run_name=run_dir.name, tags={RUN_ID: own})
        self._mlflow.log_params({name: str(value)[:250] for name, value in flat_keys(run_config).items()})

    def log(self, metrics: Mapping[str, float], *, update: int) -> None:
        """Send the finite figures as step `update`."""
        self._mlflow.log_metrics(_finite(metrics), step=update)

    def show(self, line: Mapping[str, Any]) -> None:
        """Keep a transcript's line as a text among the run's artifacts."""
        name = f"transcripts/update_{line['update']:06d}_group_{line['head']['group']}.md"
        self._mlflow.log_text(to_markdown(line), name)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


def _id_of(run_dir: Path) -> str:
    """Name and id of a run; the name alone of one that W&B knows by that, from before."""
    own = run_id_of(run_dir)
    known = any((run_dir / "wandb").glob(f"*run-*-{run_dir.name}"))
    return run_dir.name if known or not own else f"{run_dir.name}-{own[:8]}"


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
