// The course of one run or of several, as curves over updates.
"use strict";

const CARDS = [
  { title: "Held-out accuracy", share: true, lines: [["eval/accuracy_frac", "sampled"], ["eval/greedy_accuracy_frac", "greedy", true]] },
  { title: "Reward of rollouts", share: true, lines: [["rollout/reward_mean", "reward"]] },
  { title: "Critic agreement", share: true, lines: [["critic/agreement_frac", "pairs of votes that agree"]] },
  { title: "Critic against the truth", share: true, lines: [["critic/voted_precision_frac", "precision after the vote"], ["critic/voted_recall_frac", "recall", true]] },
  { title: "Critic on canaries", share: true, lines: [["critic/canary_precision_frac", "precision"], ["critic/canary_recall_frac", "recall", true]] },
  { title: "What credit did", share: true, lines: [["credit/flagged_frac", "tokens flagged"], ["credit/saved_by_process_frac", "groups saved by process", true]] },
  { title: "Age of trained tokens", lines: [["stream/age_mean", "mean"], ["stream/age_max", "oldest", true]] },
  { title: "Tokens sampled per second", lines: [["tokens_per_second", "tokens/s"]] },
  { title: "Idle share", share: true, lines: [["rollout/idle_frac", "engines"], ["learner/idle_frac", "learner", true], ["critic/idle_frac", "critics", "dots"], ["verifier/idle_frac", "verifiers", "both"]] },
  { title: "Seconds of an update", lines: [["time/update_s", "update"], ["time/wait_for_batch_s", "waiting", true], ["time/publish_s", "publish", true]] },
  { title: "Response length", lines: [["rollout/response_tokens_mean", "tokens"]] },
  { title: "Entropy", lines: [["loss/entropy_nats", "nats"]] },
  { title: "KL to the reference", lines: [["loss/kl_nats", "nats"]] },
  { title: "Gradient norm", lines: [["learner/grad_norm", "before clipping"]] },
  { title: "Clipped and truncated", share: true, lines: [["loss/clip_frac", "clipped tokens"], ["rollout/truncated_frac", "truncated responses", true]] },
];

async function overviewPage() {
  const runs = await source.runs();
  const names = CARDS.flatMap((card) => card.lines.map(([name]) => name));
  const series = await Promise.all(runs.map((run) => source.get(`runs/${run.id}/series`, { names: names.join(",") })));
  const cards = CARDS.map((card) => {
    const lines = runs.flatMap((run, i) => card.lines.filter(([name]) => series[i][name]).map(([name, words, dashed]) => ({
      name: `${run.name}: ${words}`, colour: RUN_COLOURS[i % RUN_COLOURS.length], dashed, run, points: series[i][name],
    })));
    if (!lines.some((line) => line.points.length)) return null;
    const pick = (line, update) => go("groups", { run: line.run.id, update });
    return el("section", { class: "card" }, el("h2", {}, card.title), lineChart(lines, { share: card.share, onpick: pick, label: card.title }),
      el("div", { class: "note" }, legend(card.lines)));
  });
  const alarms = runs.flatMap((run) => run.alarms.map((name) => el("p", { class: "wrong" }, `${run.name}: alarm ${name}`)));
  return [el("h1", {}, "Overview"), runTable(runs), alarms, el("div", { class: "cards" }, cards),
    el("p", { class: "note" }, "A band is the 95% interval of the problems asked. A click on a point opens the groups of that update.")];
}

function runTable(runs) {
  const cell = (x) => el("td", {}, x);
  const head = ["run", "status", "method", "model", "updates", "held-out at first", "now", "groups kept"].map((x) => el("th", {}, x));
  const body = runs.map((run, i) => el("tr", {}, el("td", {}, el("span", { class: "swatch", style: `background:${RUN_COLOURS[i % 8]}` }), ...shown(run.name)),
    cell(run.status), cell(run.method), cell(shown(run.model)), cell(String(run.updates)), cell(number(run.first_accuracy)), cell(number(run.last_accuracy)), cell(String(run.groups))));
  return el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
}
