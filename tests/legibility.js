// What of a page a person could not read: a list of sentences. Run in the page by the browser, not by the page.
(() => {
  const faults = [];
  const said = (element) => `<${element.tagName.toLowerCase()}> "${element.textContent.trim().slice(0, 40)}"`;
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`the page is ${root.scrollWidth} wide in a window of ${root.clientWidth}`);

  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const contrast = (one, other) => {  // WCAG 2.2, 1.4.3
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const colour = (text) => {
    const found = text.match(/rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)/);
    return found ? [+found[1], +found[2], +found[3], found[4] === undefined ? 1 : +found[4]] : [0, 0, 0, 0];
  };
  const over = (above, below) => [0, 1, 2].map((i) => above[3] * above[i] + (1 - above[3]) * below[i]);
  const inside = (box, x, y) => x >= box.left && x <= box.right && y >= box.top && y <= box.bottom;

  const background = (element, x, y) => {
    const layers = [];
    const svg = element.closest("svg");
    if (svg) {
      for (const shape of svg.querySelectorAll("path, rect")) {  // in the order in which they are painted
        if (!(shape.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING)) continue;
        const style = getComputedStyle(shape);
        if (style.fill === "none" || !inside(shape.getBoundingClientRect(), x, y) || shape.closest("defs")) continue;
        const group = shape.parentElement ? +getComputedStyle(shape.parentElement).opacity : 1;
        const paint = colour(style.fill);
        layers.push([...paint.slice(0, 3), paint[3] * style.fillOpacity * style.opacity * group]);
      }
    }
    let below = [255, 255, 255];
    const chain = [];
    for (let each = element; each; each = each.parentElement) chain.unshift(each);
    for (const each of chain) below = over(colour(getComputedStyle(each).backgroundColor), below);
    for (const layer of layers) below = over(layer, below);
    return below;
  };

  let texts = 0;
  for (const element of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(element);
    const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    if (!own || style.visibility === "hidden" || style.display === "none") continue;
    texts += 1;
    const box = element.getBoundingClientRect();
    const paint = colour(element.closest("svg") ? style.fill : style.color);
    const below = background(element, box.left + box.width / 2, box.top + box.height / 2);
    const ratio = contrast(over(paint, below), below);
    if (ratio < 4.5) faults.push(`contrast ${ratio.toFixed(2)} of ${said(element)}`);
    if (!element.closest("svg")) {
      for (let each = element; each; each = each.parentElement) {
        const hides = ["hidden", "clip"].includes(getComputedStyle(each).overflowX);
        if (hides && each.scrollWidth > each.clientWidth + 1) faults.push(`cut: ${said(each)}`);
        if (["auto", "scroll"].includes(getComputedStyle(each).overflowX)) break;  // can be scrolled to
        if (each === element && (box.right > root.clientWidth + 1 || box.left < -1)
            && !element.closest(".wrap, .chart, .strip")) faults.push(`beside the page: ${said(element)}`);
      }
    }
  }

  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const words = [...svg.querySelectorAll("text")].map((element) => [element, element.getBoundingClientRect()]);
    for (const [element, box] of words)
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        faults.push(`outside of its chart: ${said(element)}`);
    const slanted = (text) => {  // boxes of such words overlap where the words do not
      const turn = text.getScreenCTM();
      return Math.abs(turn.a * turn.b) > 1e-6;
    };
    words.forEach(([one, a], place) => {
      for (const [other, b] of words.slice(place + 1)) {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        const line = Math.min(a.height, b.height);
        if (wide > 1 && high > 0.3 * line && !(slanted(one) && slanted(other)))
          faults.push(`${said(one)} lies over ${said(other)}`);
      }
    });
    for (const legend of svg.querySelectorAll(".legend")) {
      const box = legend.getBoundingClientRect();
      for (const path of svg.querySelectorAll("path[clip-path]")) {
        if (legend.contains(path) || !path.getTotalLength) continue;
        const matrix = path.getScreenCTM();
        const length = path.getTotalLength();
        for (let at = 0; at <= 200; at += 1) {
          const point = path.getPointAtLength((length * at) / 200).matrixTransform(matrix);
          if (inside(box, point.x, point.y)) { faults.push("a legend lies over a curve"); break; }
        }
      }
    }
  }
  return { faults, texts, charts: document.querySelectorAll("svg").length };
})()
