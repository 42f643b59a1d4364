// What clients/agui/README.md shows, run as it is written: chat.jsx is its component, and
// socket.mjs its lines for a Centrifuge client. STEADWIRE_URL says where the server is.

import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { test } from 'node:test'
import { setTimeout as after } from 'node:timers/promises'

import { Centrifuge } from 'centrifuge'
import { createElement } from 'react'
import { act, create } from 'react-test-renderer'
import ts from 'typescript'
import WebSocket from 'ws'

/** Look every 20 ms whether *condition* holds; the test has a time limit. */
async function until(condition) {
    while (!condition()) await after(20)
}

test('the component for React', async () => {
    const source = await readFile('chat.jsx', 'utf8')
    const options = { module: 'esnext', target: 'es2022', jsx: 'react-jsx' }
    await writeFile('chat.mjs', ts.transpileModule(source, { compilerOptions: options }).outputText)
    const { Chat } = await import('./chat.mjs')
    let shown
    globalThis.IS_REACT_ACT_ENVIRONMENT = true // its effects have run
    act(() => { shown = create(createElement(Chat, { thread: crypto.randomUUID(), token: undefined })) })
    globalThis.IS_REACT_ACT_ENVIRONMENT = false
    const press = (label) => shown.root.find((each) => each.type === 'button' && each.props.children === label).props.onClick()
    const texts = () => shown.root.findAllByType('p').map((each) => each.props.children)
    const asked = press('Ask')
    await until(() => texts().some((text) => /Saturday is sunny.*airport\.$/s.test(text)))
    await asked
    assert.equal(texts()[0], 'A weekend in Lisbon')
    const before = texts().length
    const stopped = press('Ask')
    await until(() => texts().length > before + 1)
    press('Stop')
    await stopped
    assert.ok(!/airport\.$/.test(texts().at(-1) ?? ''), 'it was stopped before its end')
    shown.unmount()
})

test('over the WebSocket of a Centrifuge client', async () => {
    globalThis.Centrifuge = class extends Centrifuge {
        constructor(url, options) {
            super(url, { websocket: WebSocket, ...options })
        }
    }
    const { client, threads } = await import('./socket.mjs')
    const message = { id: crypto.randomUUID(), role: 'user', content: 'Count to 5' }
    const input = {
        threadId: crypto.randomUUID(), runId: crypto.randomUUID(), state: {}, messages: [message],
        tools: [], context: [], forwardedProps: {},
    }
    let text = ''
    for await (const event of threads.run('demo', input)) {
        if (event.type === 'TEXT_MESSAGE_CONTENT') text += event.delta
    }
    assert.equal(text, '1 2 3 4 5')
    client.disconnect()
})
