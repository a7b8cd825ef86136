/* Why a head holds a token or has evicted it: a sentence with the numbers that decided. */
const Fate = (() => {
  const NAMES = ["held", "evicted in prefill", "evicted by the cascade", "evicted while decoding"];
  const SHORT = ["held", "prefill", "cascade", "decode"];
  const short = (code) => (code < 0 ? "later" : SHORT[code]);
  const name = (code) => (code < 0 ? "not there yet" : NAMES[code]);

  /* The policy's score, NaN where it gave none. */
  const score = (sample, layer, kvHead, token) => sample.perHead("compression.score", layer, kvHead, token);

  function scoreText(sample, value) {
    const rounded = sample.codings["compression.score"] && sample.codings["compression.score"] !== "exact";
    return (rounded ? "≈ " : "") + Format.number(value);
  }

  /* The lowest score that a head kept in the last prefill: after its own eviction (1), or after the cascade (2). */
  function cut(sample, layer, kvHead, stage) {
    return sample.has("cuts") ? sample.tensors.cuts.at(layer, kvHead, stage - 1) : NaN;
  }

  /* The place of a score among those that a head gave in the last prefill, 1 for the best. */
  function rank(sample, layer, kvHead, value) {
    let [better, scored] = [0, 0];
    for (let token = 0; token < sample.tokenCount; token++) {
      const other = score(sample, layer, kvHead, token);
      if (!Number.isFinite(other) || !scoredLast(sample, layer, kvHead, token)) continue;
      scored += 1;
      if (other > value) better += 1;
    }
    return `rank ${Format.whole(better + 1)} of ${Format.whole(scored)}`;
  }

  /* Whether a token was still there in the last prefill. Each prefill scores anew, and the capture has the last scores:
     those of tokens that an earlier prefill evicted cannot be compared with what it kept. */
  function scoredLast(sample, layer, kvHead, token) {
    const evicted = sample.evictedEvent(layer, kvHead, token);
    return evicted < 0 || evicted >= sample.lastPrefill;
  }

  function budget(sample, layer) {
    const kept = sample.tensors["compression.budget"].at(layer);
    return kept < 0
      ? ""
      : `; budget ${Format.whole(kept)} per head${sample.window ? ` and a window of ${sample.window}` : ""}`;
  }

  function arrival(sample, token) {
    const event = sample.events.tokens.findIndex((tokens) => tokens > token);
    return event < 0 ? null : event;
  }

  function whyHeld(sample, layer, kvHead, token, event) {
    if (!sample.compressed) return "No policy: the full cache holds every token.";
    if (!sample.knowsEvictions) return "Evictions did not fit into this page.";
    if (sample.tensors["compression.budget"].at(layer) < 0) return "This layer is not compressed.";
    if (token < sample.sinks) return `One of the first ${sample.sinks} tokens (sinks), which the policy never evicts.`;
    if (token >= sample.promptTokens) return "Came after the prompt, and has not been evicted since.";
    const value = score(sample, layer, kvHead, token);
    if (sample.number(event) < sample.lastPrefill) {
      return `Kept. The capture has the scores of the last prefill alone, which is event ${sample.lastPrefill}.`;
    }
    if (!Number.isFinite(value)) {
      return token >= sample.promptTokens - sample.window
        ? `Among the prompt's last ${sample.window} tokens (the observation window), kept without a score.`
        : "Kept without a score.";
    }
    const lowest = cut(sample, layer, kvHead, 2);
    if (!Number.isFinite(lowest)) return `Score ${scoreText(sample, value)}; this head evicted nothing in the prefill.`;
    const beside =
      value > lowest
        ? `above the lowest kept, ${Format.number(lowest)}`
        : value === lowest
          ? "the lowest that was kept"
          : `the lowest kept is ${Format.number(lowest)}`;
    const place = rank(sample, layer, kvHead, value);
    return `Score ${scoreText(sample, value)}, ${beside} (${place}${budget(sample, layer)}).`;
  }

  function whyEvicted(sample, layer, kvHead, token, stage) {
    const number = sample.evictedEvent(layer, kvHead, token);
    const when = `At event ${number}`;
    const value = score(sample, layer, kvHead, token);
    if (stage === 3) {
      const before = Number.isFinite(value) ? ` In the prefill its score had been ${scoreText(sample, value)}.` : "";
      const rule = sample.policy.decode ? `decode rule (${sample.policy.decode})` : "decode rule";
      return `${when}, while decoding: a new token needed a place; the policy's ${rule} gave it this one's.${before}`;
    }
    const cause =
      stage === 1
        ? `${when}, in its layer's prefill`
        : `${when}, by the cascade: later layers took part of this layer's budget`;
    if (!Number.isFinite(value)) return `${cause}; it had no score.`;
    const scored = `${cause}: score ${scoreText(sample, value)}`;
    if (number < sample.lastPrefill) return `${scored}. What was kept then has been scored anew since.`;
    const lowest = cut(sample, layer, kvHead, stage);
    if (!Number.isFinite(lowest)) return `${scored}; no scored token was kept.`;
    const place = rank(sample, layer, kvHead, value);
    return `${scored}, ${besideCut(sample, value, lowest)} (${place}${budget(sample, layer)}).`;
  }

  /* How an evicted token's score stands to the head's lowest kept one: not below it only by a tie or by rounding. */
  function besideCut(sample, value, lowest) {
    const cutText = Format.number(lowest);
    if (sample.averaged("compression.score")) return `a mean over the layer's heads; this head's cut is ${cutText}`;
    if (value < lowest) return `below the head's cut ${cutText}`;
    return value === lowest
      ? "equal to the head's cut: another token of that score was kept"
      : `the head's cut being ${cutText}, as far as the page's rounding tells`;
  }

  /* {code, name, why, score, cut} of a token in a kv head after an event. */
  function explain(sample, layer, kvHead, token, event) {
    const code = sample.fate(layer, kvHead, token, event);
    const value = sample.has("compression.score") ? score(sample, layer, kvHead, token) : NaN;
    if (code < 0) {
      const first = arrival(sample, token);
      const why = first === null ? "Never came in." : `Comes in with event ${sample.number(first)}.`;
      return { code, name: name(code), why, score: NaN, cut: NaN };
    }
    const why =
      code === 0 ? whyHeld(sample, layer, kvHead, token, event) : whyEvicted(sample, layer, kvHead, token, code);
    const comparable = Number.isFinite(value) && sample.number(event) >= sample.lastPrefill;
    const known = comparable && scoredLast(sample, layer, kvHead, token);
    const lowest = known ? cut(sample, layer, kvHead, code === 1 ? 1 : 2) : NaN;
    return { code, name: name(code), why, score: value, cut: lowest };
  }

  /* {held, of, code} over the heads that are looked at: how many hold the token, and the stage of most that do not. */
  function overHeads(sample, layer, kvHead, token, event) {
    const heads = kvHead === null ? Array.from({ length: sample.kvHeads }, (_, head) => head) : [kvHead];
    const counts = [0, 0, 0, 0];
    for (const head of heads) {
      const code = sample.fate(layer, head, token, event);
      if (code < 0) return { held: 0, of: heads.length, code: -1 };
      counts[code] += 1;
    }
    const most = [1, 2, 3].reduce((best, code) => (counts[code] > counts[best] ? code : best), 1);
    return { held: counts[0], of: heads.length, code: counts[0] === heads.length ? 0 : most };
  }

  return { explain, overHeads, name, short, score, scoreText, arrival };
})();
