/** JSON as the bytes that came: numbers beyond 2^53 keep their digits, keys their order, doubles their places. */

const SCALAR = /[^\s,:{}[\]"]+/y;

/** The string that begins there. Not by a pattern: of megabytes with escapes one would need too much of the stack. */
function stringAt(text, start) {
  let end = start + 1;
  while (text[end] !== '"') end += text[end] === "\\" ? 2 : 1;
  return text.slice(start, end + 1);
}

/** The tokens of a JSON text that is known to be sound. */
function tokensOf(text) {
  const tokens = [];
  let i = 0;
  while (i < text.length) {
    const char = text[i];
    if (/\s/.test(char)) {
      i += 1;
      continue;
    }
    let token = char;
    if (!"{}[],:".includes(char)) {
      SCALAR.lastIndex = i;
      token = char === '"' ? stringAt(text, i) : SCALAR.exec(text)?.[0] ?? char;
    }
    tokens.push(token);
    i += token.length;
  }
  return tokens;
}

const change = (token) => ("{[".includes(token) ? 1 : "}]".includes(token) ? -1 : 0);

/** The value of `data.<name>` in an answer, as its tokens; null where it has none. */
function memberOf(text, name) {
  const tokens = tokensOf(text);
  let depth = 0;
  for (let i = 0; i < tokens.length; i += 1) {
    depth += change(tokens[i]);
    if (depth === 2 && tokens[i] === `"${name}"` && tokens[i + 1] === ":") {
      let end = i + 2;
      let inner = 0;
      do {
        inner += change(tokens[end]);
        end += 1;
      } while (inner > 0);
      return tokens.slice(i + 2, end);
    }
  }
  return null;
}

/** `data.<name>` of an answer with an indent for each level; null where it is not there. */
export function indented(text, name) {
  const tokens = memberOf(text, name);
  if (tokens === null) return null;
  let depth = 0;
  let out = "";
  const line = () => `\n${"  ".repeat(depth)}`;
  tokens.forEach((token, i) => {
    if ("{[".includes(token)) {
      depth += 1;
      out += change(tokens[i + 1] ?? "") === -1 ? token : token + line();
    } else if ("}]".includes(token)) {
      depth -= 1;
      out += change(tokens[i - 1] ?? "") === 1 ? token : line() + token;
    } else if (token === ",") out += token + line();
    else out += token === ":" ? ": " : token;
  });
  return out;
}
