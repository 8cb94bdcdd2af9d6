"use strict"
const $ = id => document.getElementById(id)
const make = (tag, fields = {}, ...children) => { const e = Object.assign(document.createElement(tag), fields); e.append(...children); return e }
const post = (address, body) => fetch(address, {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body)})
let model, known = null, painted = null  // painted: rows of 1 where the image stays and 0 where it was painted

// ------------------------------------------------------------------------------------------------ what is asked for

function side(sampler) {
  const choice = make("select", {className: "sampler"}, ...model.samplers.map(name => make("option", {textContent: name, selected: name == sampler})))
  const settings = make("input", {className: "settings", size: 24, placeholder: "steps=12 temperature=0.9"})
  const head = make("div", {className: "side"}, make("label", {}, "sampler", choice), make("label", {}, "settings", settings))
  return make("section", {}, head, make("p", {className: "note"}), make("div", {className: "items"}))
}

function value(text) { return text === "true" ? true : text === "false" ? false : text !== "" && !isNaN(text) ? Number(text) : text }

function asked(section) {
  const body = {n: Number($("n").value), seed: Number($("seed").value), sampler: section.querySelector(".sampler").value, codes: model.codes}
  const given = Object.fromEntries([...$("conditions").querySelectorAll("[name]")].filter(e => e.value !== "").map(e => [e.name, e.value]))
  if (Object.keys(given).length) body.condition = given
  if ($("guidance").value !== "") body.guidance = Number($("guidance").value)
  if (model.streams && $("duration").value !== "") body.duration = Number($("duration").value)
  if (known) {
    body.known = known
    if (painted) body.keep = painted
    else if (model.streams) { if ($("first").value !== "") body.keep = Number($("first").value) }
    else if ($("keep").value) body.keep = $("keep").value
  }
  const words = section.querySelector(".settings").value.trim()
  if (words) body.settings = Object.fromEntries(words.split(/\s+/).map(word => [word.split("=")[0], value(word.split("=")[1] ?? "")]))
  return body
}

// ----------------------------------------------------------------------------------------------------- what is drawn

async function draw(section) {
  const note = section.querySelector(".note"), items = section.querySelector(".items"), body = asked(section)
  note.className = "note"; note.textContent = "drawing ..."; items.replaceChildren()
  if (model.streams && $("listen").checked) listen(items, body)
  const boards = $("watch").checked ? Array.from({length: body.n}, () => new Cells()) : []
  items.append(...boards.map(board => make("figure", {}, board.canvas)))
  const began = performance.now(), answer = await post(boards.length ? "v1/watch" : "v1/sample", body)
  const steps = []
  const made = answer.ok && boards.length ? await lines(answer, step => {
    steps.push(step); note.textContent = `step ${step.step} of ${step.steps}`
    for (const [item, level, position, p] of step.cells) boards[item].drawn(level, position, steps.length, p)
    for (const [item, level, position] of step.back) boards[item].back(level, position)
  }) : await answer.json()
  if (made.error) { note.className = "note error"; note.textContent = made.error; items.replaceChildren(); return }
  const done = made.done ?? made, calls = done.items.reduce((sum, item) => sum + item.calls, 0) / done.items.length
  const seconds = ((performance.now() - began) / 1000).toFixed(2), most = Math.max(0, ...steps.map(step => step.cells.filter(cell => cell[0] == 0).length))
  note.textContent = `${calls.toFixed(1)} network calls an item, ${seconds} s, ${done.sampler.exact ? "exact" : "an approximation"}`
    + (boards.length ? `; up to ${most} ${most == 1 ? "cell" : "cells"} of the first item in a step` : "")
  boards.forEach(board => board.paint(steps.length))
  section.made = {...done, body, whole: done.items.map(item => item.media)}
  items.replaceChildren(...done.items.map((item, i) => figure(section.made, item, i, boards[i])))
  if ($("prefix").querySelector("input").value < model.grid.prefixes) await shorten(section)
}

async function lines(answer, tell) {  // a line of JSON per step; returns the last
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = "", last = {}
  for (;;) {
    const {value, done} = await reader.read()
    if (done) return last
    const parts = (rest + value).split("\n"); rest = parts.pop()
    for (const part of parts) { last = JSON.parse(part); if (last.cells) tell(last) }
  }
}

function figure(made, item, i, board) {
  const url = `data:${made.type};base64,${item.media}`, name = `${made.body.seed}_${i}`
  const sound = made.type.startsWith("audio"), links = make("figcaption")
  links.append(make("a", {href: url, download: `${name}.${sound ? "wav" : "png"}`, textContent: sound ? "WAV" : "PNG", className: "media"}))
  if (item.codes) {
    const file = new Blob([JSON.stringify({codes: item.codes, tokens: model.tokens, request: {...made.body, known: undefined}})], {type: "application/json"})
    links.append(make("a", {href: URL.createObjectURL(file), download: `${name}.json`, textContent: "codes", className: "codes"}))
  }
  if (item.text) links.append(item.text)
  const shown = sound ? make("audio", {controls: true, src: url}) : make("img", {src: url, alt: `item ${i}`})
  return make("figure", {}, shown, links, ...(board ? [board.canvas] : []))
}

function listen(items, body) {  // the browser plays what has come
  const words = new URLSearchParams({seed: body.seed, sampler: body.sampler})
  if (body.condition) words.set("condition", Object.values(body.condition)[0])
  for (const name of ["guidance", "duration"]) if (body[name] !== undefined) words.set(name, body[name])
  $("legend").hidden = false
  $("legend").replaceChildren("as it is drawn, without settings and known sound: ", make("audio", {controls: true, autoplay: true, className: "live", src: `v1/stream?${words}`}))
}

async function shorten(section) {  // the same items by the first levels, tokens or scales
  if (!section.made?.items[0].codes) return
  const keep = Number($("prefix").querySelector("input").value), {made} = section
  let media = made.whole
  if (keep < model.grid.prefixes) {
    const answer = await post("v1/decode", {codes: made.items.map(item => item.codes), keep}), found = await answer.json()
    if (!answer.ok) { section.querySelector(".note").textContent = found.error; return }
    media = found.items.map(item => item.media)
  }
  section.querySelectorAll(".items figure").forEach((element, i) => {
    const url = `data:${made.type};base64,${media[i]}`
    element.querySelector("img, audio").src = element.querySelector("a.media").href = url
  })
}

// ------------------------------------------------------------------------------------------- cells, while they are drawn

class Cells {  // hue: order, blue first; strength: the probability that the id had; hovering says both
  constructor() {
    const {kind, h, w, sides, levels} = model.grid, positions = model.grid.positions ?? 1
    const across = kind == "pyramid" ? sides.reduce((sum, s) => sum + s + 1, -1) : kind == "raster" ? w : Math.min(positions, 256)
    this.high = kind == "pyramid" ? Math.max(...sides) : kind == "raster" ? h : Math.ceil(positions / across)
    this.across = across; this.gap = levels > 1 && this.high > 1 ? 1 : 0; this.found = new Map(); this.last = 1
    this.size = Math.max(2, Math.min(12, Math.floor(288 / across)))
    this.canvas = make("canvas", {className: "cells", width: across * this.size, height: (levels * (this.high + this.gap) - this.gap) * this.size})
    this.canvas.onpointermove = event => {
      const scale = this.canvas.width / this.canvas.clientWidth / this.size, at = [Math.floor(event.offsetX * scale), Math.floor(event.offsetY * scale)].join()
      const cell = [...this.found.values()].find(cell => cell.at == at)
      this.canvas.title = cell ? `level ${cell.level}, position ${cell.position}: step ${cell.step}${cell.p == null ? "" : `, probability ${cell.p}`}` : ""
    }
  }
  place(level, position) {
    const {kind, sides} = model.grid, top = level * (this.high + this.gap)
    if (kind != "pyramid") return [position % this.across, top + Math.floor(position / this.across)]
    let left = 0
    for (const s of sides) { if (position < s * s) return [left + position % s, top + Math.floor(position / s)]; position -= s * s; left += s + 1 }
  }
  drawn(level, position, step, p) {
    const [x, y] = this.place(level, position)
    this.found.set(`${level},${position}`, {level, position, step, p, x, y, at: `${x},${y}`}); this.dot(x, y, step, p)
  }
  back(level, position) {
    const cell = this.found.get(`${level},${position}`)
    if (cell) this.canvas.getContext("2d").clearRect(cell.x * this.size, cell.y * this.size, this.size, this.size)
    this.found.delete(`${level},${position}`)
  }
  dot(x, y, step, p) {
    const pen = this.canvas.getContext("2d"); this.last = Math.max(this.last, step)
    pen.clearRect(x * this.size, y * this.size, this.size, this.size)
    pen.fillStyle = `hsl(${240 - 240 * (step - 1) / Math.max(1, this.last - 1)} 80% 50% / ${p == null ? 0.9 : 0.2 + 0.8 * p})`
    pen.fillRect(x * this.size, y * this.size, this.size, this.size)
  }
  paint(steps) { this.last = steps; for (const {x, y, step, p} of this.found.values()) this.dot(x, y, step, p) }
}

// ------------------------------------------------------------------------------------------------- a file to complete

$("known").onchange = async event => {
  const file = event.target.files[0]
  known = painted = null; $("paint").hidden = true
  if (!file) return
  known = btoa(Array.from(new Uint8Array(await file.arrayBuffer()), byte => String.fromCharCode(byte)).join(""))
  if (model.media.startsWith("image")) await canvas(file)
}

async function canvas(file) {  // the image as the model is given it: scaled to cover its size, cut around the centre
  const [, height, width] = model.media_shape, board = $("paint").querySelector("canvas"), pen = board.getContext("2d")
  const image = await createImageBitmap(file), scale = Math.max(width / image.width, height / image.height)
  const clean = () => {
    painted = null; pen.fillStyle = "#fff"; pen.fillRect(0, 0, width, height)
    pen.drawImage(image, (width - image.width * scale) / 2, (height - image.height * scale) / 2, image.width * scale, image.height * scale)
  }
  board.width = width; board.height = height; clean(); $("paint").hidden = false
  board.ondblclick = clean
  board.onpointerdown = board.onpointermove = event => {
    if (!event.buttons) return
    const x = event.offsetX * width / board.clientWidth, y = event.offsetY * height / board.clientHeight, r = Math.max(1, width / 16)
    painted ??= Array.from({length: height}, () => Array(width).fill(1))
    for (let i = Math.max(0, Math.floor(y - r)); i < Math.min(height, y + r); i++)
      for (let j = Math.max(0, Math.floor(x - r)); j < Math.min(width, x + r); j++) painted[i][j] = 0
    pen.fillStyle = "#e80a"; pen.fillRect(x - r, y - r, 2 * r, 2 * r)
  }
}

// ------------------------------------------------------------------------------------------------------- the beginning

$("ask").onsubmit = async event => {
  event.preventDefault()
  document.querySelectorAll("section .note").forEach(note => { note.textContent = "waits" })
  for (const section of $("sides").children) await draw(section)
}

function slider() {  // how much of the code is decoded
  const {prefixes, kind} = model.grid, input = $("prefix").querySelector("input")
  const what = kind == "pyramid" ? "scales" : kind == "line" ? "tokens" : "levels"
  const say = () => { $("prefix").querySelector("span").textContent = `decode ${input.value} of ${prefixes} ${what}` }
  input.max = input.value = prefixes; $("prefix").hidden = prefixes < 2 || !model.codes; say()
  input.oninput = say
  input.onchange = async () => { for (const section of $("sides").children) await shorten(section) }
}

fetch("v1/model").then(answer => answer.json()).then(found => {
  model = found
  $("about").textContent = `${model.generator ?? "no generator"} over ${model.tokens}`
  $("guidance").placeholder = model.guidance
  document.querySelectorAll(".sound, .image").forEach(e => { e.hidden = e.classList.contains("sound") != model.streams })
  for (const [name, kind] of Object.entries(model.conditions))
    $("conditions").append(make("label", {}, name, Array.isArray(kind) ? make("select", {name}, make("option", {value: "", textContent: "any"}), ...kind.map(word => make("option", {textContent: word}))) : make("input", {name, size: 30})))
  slider()
  $("sides").append(...model.samplers.slice(0, 2).map(side))
  document.body.dataset.ready = "true"
})
