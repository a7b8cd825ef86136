/* What is recommended, in one sentence with what it was measured to cost; then every step that was tried. */
const Recommendations = (() => {
  const SCHEMA = "kvcompress.recommendations/1";
  const node = Dom.section(
    "recommendations",
    "Recommendations",
    "From compression_recommendations.json of the folder.",
  );

  const COLUMNS = [
    { key: "strategy", title: "strategy", text: true, format: String },
    { key: "policy", title: "policy", text: true, format: String },
    { key: "size", title: "cache size", unit: "tokens", format: Format.whole },
    { key: "removed", title: "removed", unit: "expected", format: Format.percent },
    { key: "kl", title: "KL", unit: "nats/token" },
    { key: "top1", title: "top-1 agreement", format: Format.percent },
    { key: "bytes", title: "memory", format: (value) => (Number.isFinite(value) ? Format.bytes(value) : "–") },
    { key: "share", title: "of full", format: Format.percent },
    { key: "within", title: "within tolerance", text: true, format: String },
  ];

  const numeric = (value) => (typeof value === "number" ? value : NaN);

  function steps({ strategies, recommendation }) {
    return strategies.flatMap(({ strategy, policy, ladder }) =>
      ladder.map((step) => ({
        strategy,
        policy,
        size: numeric(step.cache_size),
        removed: numeric(step.expected_ratio),
        kl: numeric(step.kl),
        top1: numeric(step.top1),
        bytes: numeric(step.kv_bytes),
        share: numeric(step.kv_bytes) / numeric(step.full_bytes),
        within: step.within_tolerance === null ? "not measured" : step.within_tolerance ? "yes" : "no",
        chosen:
          Boolean(recommendation) && recommendation.policy === policy && recommendation.cache_size === step.cache_size,
      })),
    );
  }

  function headline({ measured, why_not_measured: why, recommendation, tolerance, context, steps: count }) {
    const [kl, top1] = [Format.number(tolerance.kl), Format.percent(tolerance.top1)];
    const limits = `KL at most ${kl} nats per token, top-1 agreement at least ${top1}`;
    if (!measured) return [Dom.make("strong", {}, "Not measured. "), `${why} The budgets below are expectations.`];
    if (!recommendation) return [Dom.make("strong", {}, "Nothing stays within the tolerance: "), `${limits}.`];
    const { policy, cache_size: size, bytes_ratio: ratio } = recommendation;
    const cost = `a KL of ${Format.number(recommendation.kl)} nats per token`;
    const agreement = `a top-1 agreement of ${Format.percent(recommendation.top1)}`;
    return [
      Dom.make("strong", {}, `${policy}, ${Format.whole(size)} tokens per layer. `),
      `It holds ${Format.percent(1 - ratio)} of the full cache's bytes at ${cost} and ${agreement}, `,
      `measured on ${Format.whole(count)} tokens after ${Format.whole(context)} (${limits}).`,
      pace(recommendation.speed),
    ];
  }

  function pace(speed) {
    if (!speed) return null;
    const [prefill, decode] = [Format.number(speed.prefill_ratio), Format.number(speed.decode_ratio)];
    return ` Speed: prefill × ${prefill}, decode × ${decode} of the full cache's.`;
  }

  function pattern({ pattern: found }) {
    const note = found.note ? ` ${Format.capital(found.note)}.` : "";
    return Dom.make("p", { class: "hint" }, `Pattern of the attention: ${found.name}.${note}`);
  }

  function draw(given) {
    const table = new SortableTable("Steps that were tried", COLUMNS, { chosen: (row) => row.chosen });
    table.update(steps(given).sort((one, other) => other.chosen - one.chosen)); // the recommended step first
    return [Dom.make("p", { class: "verdict", dir: "auto" }, headline(given)), pattern(given), table.node];
  }

  function show(given) {
    node.hidden = given === null;
    if (given === null) return;
    const known = given.schema === SCHEMA && Array.isArray(given.strategies);
    node.append(...(known ? draw(given) : []), JsonView.fold("Everything in the file", given));
  }

  return { node, show };
})();
