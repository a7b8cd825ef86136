/* What the text can be coloured by: a number per token, and the share of the ramp that it gets. */
const TokenValues = (() => {
  const KINDS = [
    {
      key: "mass",
      title: "attention mass at this step",
      unit: "mass per key, mean over query heads",
      fromZero: true,
      has: (sample) => sample.massEvents.length > 0,
    },
    {
      key: "top",
      title: "the head's top positions",
      unit: "mass on the 16 largest, mean over queries",
      fromZero: true,
      has: (sample) => sample.profileEvents.length > 0,
    },
    {
      key: "influence",
      title: "mass paid by decoded tokens",
      unit: "sum over decoded tokens",
      fromZero: true,
      has: (sample) => sample.has("token.influence"),
    },
    {
      key: "score",
      title: "the policy's score",
      unit: "score, higher is kept",
      has: (sample) => sample.has("compression.score"),
    },
    { key: "key_norm", title: "norm of the key", unit: "Euclidean norm", has: (sample) => sample.has("kv.key_norm") },
    {
      key: "value_norm",
      title: "norm of the value",
      unit: "Euclidean norm",
      has: (sample) => sample.has("kv.value_norm"),
    },
  ];
  const NAMES = { score: "compression.score", key_norm: "kv.key_norm", value_norm: "kv.value_norm" };

  const kinds = (sample) => KINDS.filter((kind) => kind.has(sample));
  const kindOf = (sample, key) => kinds(sample).find((kind) => kind.key === key) || kinds(sample)[0];

  /* Float64 per token, NaN where a token has no such number. */
  function values(sample, { key }, layer, head, event) {
    const found = new Float64Array(sample.tokenCount).fill(NaN);
    if (key === "mass") found.set(sample.mass(event).tensor.row(layer));
    else if (key === "influence") found.set(sample.tensors["token.influence"].row(layer));
    else if (key === "top") addTop(sample, layer, head, event, found);
    else
      for (let token = 0; token < found.length; token++) found[token] = perHead(sample, NAMES[key], layer, head, token);
    return found;
  }

  function addTop(sample, layer, head, event, found) {
    const { at } = sample.stored(event, "profileEvents");
    const heads = head < 0 ? Array.from({ length: sample.heads }, (_, index) => index) : [head];
    for (const one of heads) {
      const positions = sample.tensors["attention.top_positions"].row(at, layer, one);
      const masses = sample.tensors["attention.top_mass"].row(at, layer, one);
      positions.forEach((position, index) => {
        if (position >= 0) found[position] = (found[position] || 0) + masses[index] / heads.length;
      });
    }
  }

  /* Of the chosen head's kv head, or the mean of all that have a number. */
  function perHead(sample, name, layer, head, token) {
    if (head >= 0) return sample.perHead(name, layer, sample.kvHead(head), token);
    let [sum, count] = [0, 0];
    for (let kvHead = 0; kvHead < sample.kvHeads; kvHead++) {
      const value = sample.perHead(name, layer, kvHead, token);
      if (Number.isFinite(value)) [sum, count] = [sum + value, count + 1];
    }
    return count ? sum / count : NaN;
  }

  /* {low, high, log, share(value)}: a logarithmic ramp begins where a twentieth of the tokens lie below, or at 1e-5. */
  function ramp(numbers, kind, scale) {
    const finite = numbers.filter(Number.isFinite).sort();
    const high = finite.length ? finite[finite.length - 1] : 1;
    const log = scale === "log" && finite.length > 0 && finite[0] >= 0 && high > 0;
    const positive = log ? finite.filter((value) => value > 0) : finite;
    const least = positive.length ? positive[Math.floor(positive.length / 20)] : 0;
    const low = log ? Math.max(least, high * 1e-5) : kind.fromZero ? 0 : finite.length ? finite[0] : 0;
    const [from, to] = log ? [Math.log(low), Math.log(high)] : [low, high];
    const share = (value) => {
      if (!Number.isFinite(value)) return NaN;
      if (to <= from) return value > 0 ? 1 : 0;
      return Math.max(0, Math.min(1, ((log ? Math.log(Math.max(value, 1e-300)) : value) - from) / (to - from)));
    };
    return { low, high, log, share };
  }

  return { kinds, kindOf, values, ramp };
})();
