// The explorer of a run's page, ngvae_pyro/report/explorer.py: sliders for z, and E[x | z] redrawn.
(() => {
  "use strict";
  const section = document.getElementById("explorer");
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const [channels, height, width] = data.shape;
  const picture = document.getElementById("explorer-picture");
  const rows = [...section.querySelectorAll(".slider")].map((row) => ({
    input: row.querySelector("input"),
    output: row.querySelector("output"),
  }));
  const radios = [...section.querySelectorAll('input[name="explorer-base"]')];
  let base = data.bases[0];
  let z = Float32Array.from(base.z);
  // Which slider is away from the base image, where only one can be.
  let moved = null;

  // The decoder: linear layers, of which all but the first and the last are residual ones; the last
  // may be a sum of products of rows, columns and channels, with patches beside it.
  function bytes(text) {
    const letters = atob(text), found = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) found[i] = letters.charCodeAt(i);
    return found.buffer;
  }
  function unpacked({weights, scale, bias}) {
    const whole = new Int16Array(bytes(weights)), scales = new Float32Array(bytes(scale));
    const columns = whole.length / scales.length, values = new Float32Array(whole.length);
    for (let i = 0; i < whole.length; i++) values[i] = scales[Math.floor(i / columns)] * whole[i];
    return {weights: values, bias: new Float32Array(bytes(bias)), columns};
  }
  function linear({weights, bias, columns}, x) {
    const out = new Float32Array(bias.length);
    for (let i = 0, at = 0; i < out.length; i++) {
      let sum = bias[i];
      for (let j = 0; j < columns; j++) sum += weights[at++] * x[j];
      out[i] = sum;
    }
    return out;
  }
  function normalised(x) {
    const mean = x.reduce((sum, v) => sum + v, 0) / x.length;
    const variance = x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length;
    return x.map((v) => (v - mean) / Math.sqrt(variance + 1e-5));
  }
  const silu = (x) => x.map((v) => v / (1 + Math.exp(-v)));
  const means = {
    gaussian: (v) => v,
    student_t: (v) => v,
    poisson: Math.exp,
    negative_binomial: Math.exp,
    bernoulli: (v) => 1 / (1 + Math.exp(-v)),
    continuous_bernoulli: (logit) => {
      // No farther than torch's float32 goes.
      const v = Math.max(-15.94, Math.min(15.94, logit));
      return Math.abs(v) < 0.01 ? 0.5 + v / 12 : 1 / (1 - Math.exp(-v)) - 1 / v;
    },
  };
  function products({factors, rank, bias}, h) {
    const [along, across, hues] = factors.map((factor) => linear(factor, h));
    const out = new Float32Array(channels * height * width);
    for (let c = 0, at = 0; c < channels; c++) {
      for (let i = 0; i < height; i++) {
        for (let j = 0; j < width; j++) {
          let sum = 0;
          for (let r = 0; r < rank; r++) {
            const hue = hues ? hues[c * rank + r] : 1;
            sum += hue * along[i * rank + r] * across[r * width + j];
          }
          out[at] = bias[at] + sum / Math.sqrt(rank);
          at++;
        }
      }
    }
    return out;
  }
  // Patches are linear in silu(f + conv(silu(f))) of features f on a grid, channels last.
  function patches({features, conv, out, grid, patch}, h, image) {
    const [along, across, hues] = features.map((factor) => linear(factor, h));
    const [rows, columns] = grid, [high, wide] = patch, size = conv.bias.length;
    const f = new Float32Array(rows * columns * size);
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        for (let r = 0; r < size; r++) {
          const product = along[i * size + r] * across[j * size + r] / Math.sqrt(size);
          for (let c = 0; c < size; c++) {
            f[(i * columns + j) * size + c] += product * hues[r * size + c];
          }
        }
      }
    }
    const active = silu(f), cell = new Float32Array(size), around = new Float32Array(9 * size);
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        around.fill(0);
        for (let u = 0; u < 3; u++) {
          for (let v = 0; v < 3; v++) {
            const y = i + u - 1, x = j + v - 1;
            if (y < 0 || y >= rows || x < 0 || x >= columns) continue;
            for (let c = 0; c < size; c++) {
              around[9 * c + 3 * u + v] = active[(y * columns + x) * size + c];
            }
          }
        }
        const more = linear(conv, around);
        for (let c = 0; c < size; c++) cell[c] = f[(i * columns + j) * size + c] + more[c];
        const pixels = linear(out, silu(cell));
        for (let u = 0, at = 0; u < high; u++) {
          for (let v = 0; v < wide; v++) {
            const y = i * high + u, x = j * wide + v;
            for (let c = 0; c < channels; c++, at++) {
              if (y < height && x < width) image[(c * height + y) * width + x] += pixels[at];
            }
          }
        }
      }
    }
    return image;
  }
  const drawn = {
    linear,
    products,
    patches: (layer, h) => patches(layer, h, products(layer.whole, h)),
  };
  function read(layer) {
    if (layer.factors) {
      const bias = new Float32Array(bytes(layer.bias));
      return {kind: "products", factors: layer.factors.map(unpacked), rank: layer.rank, bias};
    }
    if (!layer.whole) return {...unpacked(layer), kind: "linear"};
    const features = layer.features.map(unpacked), whole = read(layer.whole);
    const [conv, out] = [layer.conv, layer.out].map(unpacked);
    return {...layer, kind: "patches", whole, features, conv, out};
  }
  const layers = (data.layers || []).map(read);
  function decode(z) {
    let h = silu(linear(layers[0], z));
    for (const layer of layers.slice(1, -1)) {
      const more = silu(linear(layer, normalised(h)));
      h = h.map((v, i) => v + more[i]);
    }
    const last = layers[layers.length - 1];
    return drawn[last.kind](last, h).map((v) => data.times * means[data.mean](v));
  }

  // Pictures, of three kinds.
  function paint(canvas, x) {
    const image = new ImageData(width, height), size = height * width;
    for (let p = 0; p < size; p++) {
      image.data[4 * p + 3] = 255;
      for (let c = 0; c < 3; c++) {
        image.data[4 * p + c] = 255 * x[(channels === 1 ? 0 : c) * size + p];
      }
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
  function curve(line, x) {
    const {loc, scale, low, high} = data.curve;
    const unit = (high - low || 1) / 100;
    const heights = Array.from(x, (v, i) => (high - loc[i] - scale[i] * v) / unit);
    // A line for each channel, one after the other; a single number is a level line.
    const across = 100 / Math.max(width - 1, 1);
    const points = heights.map((down, i) => {
      const place = i % width, at = down.toFixed(2);
      const point = `${place ? "L" : "M"}${(place * across).toFixed(2)},${at}`;
      return width === 1 ? `${point}L100,${at}` : point;
    });
    line.setAttribute("d", points.join(" "));
  }
  function frame(canvas, strip, i) {
    canvas.getContext("2d").drawImage(strip, 0, i * height, width, height, 0, 0, width, height);
  }
  const strips = (data.strips || []).map((row) => row.map((source) => {
    const image = new Image();
    image.src = source;
    return image;
  }));
  function draw(target, from, z, slider) {
    if (data.strips) {
      const row = strips[data.bases.indexOf(from)];
      if (slider === null) frame(target, row[0], data.steps + 1);
      else frame(target, row[slider], rows[slider].input.valueAsNumber);
    } else if (data.curve) curve(target.querySelector(".now"), decode(z));
    else paint(target, decode(z));
  }

  // Sliders have places 0 to steps; a latent is where it was in the base image until it is moved.
  const number = (v) => ((Math.round(100 * v) || 0) / 100).toFixed(2).replace("-", "\u2212");
  const place = (i, v) => data.steps * (v - base.low[i]) / (base.high[i] - base.low[i] || 1);
  function show(i) {
    const {input, output} = rows[i], value = z[data.latents[i]];
    output.textContent = number(value);
    input.setAttribute("aria-valuetext", number(value));
    const ends = [value, base.z[data.latents[i]]].map((v) => place(i, v) / data.steps);
    input.style.setProperty("--from", Math.min(...ends));
    input.style.setProperty("--to", Math.max(...ends));
  }
  function put(i) {
    const {input} = rows[i], own = base.z[data.latents[i]];
    z[data.latents[i]] = own;
    input.value = Math.round(place(i, own));
    input.disabled = base.high[i] === base.low[i];
    show(i);
  }
  function reset() {
    z = Float32Array.from(base.z);
    moved = null;
    rows.forEach((row, i) => put(i));
    draw(picture, base, z, moved);
  }
  rows.forEach(({input}, i) => {
    input.max = data.steps;
    input.addEventListener("input", () => {
      if (data.strips && moved !== null && moved !== i) put(moved);
      moved = i;
      const share = input.valueAsNumber / data.steps;
      z[data.latents[i]] = base.low[i] + (base.high[i] - base.low[i]) * share;
      show(i);
      draw(picture, base, z, moved);
    });
  });
  radios.forEach((radio, i) => radio.addEventListener("change", () => {
    base = data.bases[i];
    if (data.curve) curve(picture.querySelector(".base"), decode(base.z));
    reset();
  }));
  document.getElementById("explorer-reset").addEventListener("click", reset);

  function begin() {
    data.bases.forEach((one, i) => draw(section.querySelectorAll(".thumb")[i], one, one.z, null));
    if (data.curve) {
      curve(picture.querySelector(".base"), decode(base.z));
      section.querySelectorAll(".low, .high").forEach((end) => {
        end.textContent = Number(data.curve[end.className].toPrecision(3)).toLocaleString("en");
      });
    }
    section.hidden = false;
    reset();
  }
  Promise.all(strips.flat().map((image) => image.decode())).then(begin);
})();
