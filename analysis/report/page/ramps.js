/* Colours that hold for every kind of colour vision: ramps whose lightness rises or falls without a turn. */
const Ramps = (() => {
  // Light scheme: ColorBrewer's YlGnBu from the page's own white. Dark scheme: cividis (Nuñez and others, 2018).
  const LIGHT = ["#fbfcf0", "#e6f4cb", "#bfe3b9", "#86cdbb", "#4db4c2", "#2a90bd", "#235fa5", "#263a8d", "#0d1d58"];
  const DARK = ["#182033", "#1b3561", "#34446b", "#515568", "#6b6a70", "#898270", "#ab9c66", "#d0b954", "#fee838"];
  // Okabe and Ito: distinct for every kind of colour vision. 0 held, then the stages of eviction.
  const STAGES = ["#0072b2", "#e69f00", "#cc79a7", "#d55e00"];

  let table = [];
  let inks = [];

  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  function luminance(rgb) {
    const [r, g, b] = rgb.map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function mix(stops, share) {
    const place = Math.min(share, 0.999999) * (stops.length - 1);
    const index = Math.floor(place);
    const [from, to] = [channels(stops[index]), channels(stops[index + 1])];
    return from.map((value, at) => Math.round(value + (to[at] - value) * (place - index)));
  }

  const css = (rgb) => `rgb(${rgb.join(" ")})`;
  const stops = () => (isDark() ? DARK : LIGHT);

  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function prepare() {
    const mixed = Array.from({ length: 256 }, (_, step) => mix(stops(), step / 255));
    table = mixed.map(css);
    inks = mixed.map((rgb) => (luminance(rgb) > 0.186 ? "#10141c" : "#f7f8fa"));
  }

  const step = (share) => Math.max(0, Math.min(255, Math.round(255 * share)));
  const colour = (share) => table[step(share)];
  const ink = (share) => inks[step(share)];

  /* A line's colour among several: the ramp without the end that fades into the page. */
  const line = (index, count) => css(mix(stops(), 0.35 + 0.65 * (count > 1 ? index / (count - 1) : 1)));
  const gradient = () => `linear-gradient(to right, ${stops().join(", ")})`;
  const stage = (code) => STAGES[code];
  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  return { prepare, colour, ink, line, gradient, stage, token, isDark };
})();
