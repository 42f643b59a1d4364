// The page of development: a conversation with an agent behind Steadwire.
//
// Events come over the WebSocket of a Centrifuge client, or, where the SDK could not be
// loaded, over server-sent events; `Threads` does the same with both.

import { Conversation } from '/demo/conversation.js'
import { Refused, Threads } from '/demo/threads.js'

const NAMES = ['Ada', 'Ben', 'Chloé', 'Dmitri', 'Emeka', 'Fatima', 'Goro', 'Hana']
const RECOVERED = 5000 // ms that the badge says what was recovered
const TYPING = 5000 // ms after which somebody who typed types no more
const PRESENT = 5000 // ms between two looks at who is here

const at = (id) => document.getElementById(id)
const page = {
    badge: at('badge'), badgeText: at('badge-text'), present: at('present'), typing: at('typing'),
    conversation: at('conversation'), welcome: at('welcome'), question: at('question'),
    send: at('send'), stop: at('stop'), notice: at('notice'), noticeText: at('notice-text'),
    noticeAction: at('notice-action'), drop: at('drop'), expire: at('expire'), kill: at('kill'),
}

// Who we are, and what we talk in. A second tab is the same person; a link is the same thread.

const query = new URLSearchParams(location.search)
const user = name(query.get('user')) || remembered()
if (!named()) history.replaceState(null, '', `#${unique(4)}`)
const thread = named()
const agent = query.get('agent') ?? 'demo'
addEventListener('hashchange', () => location.reload())

// What a ticket can be asked for: 64 characters that can be seen.
function name(text) {
    return [...(text ?? '').replace(/[\p{C}\p{Z}]+/gu, ' ').trim()].slice(0, 64).join('')
}

function remembered() {
    const chosen = NAMES[Math.floor(Math.random() * NAMES.length)]
    try {
        const found = localStorage.getItem('user') ?? chosen
        localStorage.setItem('user', found)
        return found
    } catch {
        return chosen // a browser that keeps nothing for pages
    }
}

// The thread of the address; '' without one, and for one that is not encoded as an address is.
function named() {
    try {
        return decodeURIComponent(location.hash.slice(1))
    } catch {
        return ''
    }
}

function unique(bytes) {
    const found = crypto.getRandomValues(new Uint8Array(bytes)) // also where a page is not secure
    return Array.from(found, (each) => each.toString(16).padStart(2, '0')).join('')
}

async function post(path, body = {}) {
    const response = await fetch(path, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify(body),
    })
    if (!response.ok) throw new Refused(response.status)
    return response.status === 204 ? null : await response.json()
}

let credential = '' // the id of the connection's ticket
async function ticket() {
    return (await post('/demo/ticket', { user })).ticket
}

// The connection.

let socket = null
const client = connectingClient()
const threads = new Threads({ token: ticket, centrifuge: client })
const stopping = new AbortController()

function connectingClient() {
    if (!globalThis.Centrifuge) return undefined
    class Socket extends WebSocket {
        constructor(...args) {
            super(...args)
            socket = this
        }
    }
    const made = new Centrifuge(`${location.origin.replace(/^http/, 'ws')}/connection/websocket`, {
        websocket: Socket,
        minReconnectDelay: 300,
        maxReconnectDelay: 3000,
        getToken: async () => {
            const given = await post('/demo/ticket', { user })
            credential = given.id
            return given.ticket
        },
    })
    // A ticket is good once: each connection asks for its own.
    made.on('connecting', ({ code }) => {
        made.setToken('')
        if (code !== 0) badge('reconnecting')
    })
    made.on('disconnected', ({ code, reason }) => {
        badge('closed')
        const evicted = code === 3504
        notice(
            evicted
                ? 'Closed here: you have opened more tabs than you may, and this one was the least active.'
                : `Closed by the server: ${reason}.`,
            'Go on here',
            () => made.connect(),
        )
    })
    made.on('connected', () => notice(''))
    made.connect()
    return made
}

const BADGES = {
    connecting: 'Connecting',
    connected: 'Connected',
    reconnecting: 'Reconnecting',
    closed: 'Closed',
}
let badgeTimer
function badge(state, text = BADGES[state]) {
    clearTimeout(badgeTimer)
    page.badge.dataset.state = state
    page.badgeText.textContent = text
    if (state === 'recovered') badgeTimer = setTimeout(() => badge('connected'), RECOVERED)
}

function onState({ state, recovered }) {
    if (state === 'connected' && recovered) {
        const text = `Recovered ${recovered} ${recovered === 1 ? 'event' : 'events'}`
        badge('recovered', text)
        say(text)
    } else {
        badge(state)
        if (state === 'reconnecting') say('Reconnecting')
    }
}

// The conversation.

const say = (text) => {
    if (!replaying) at('said').textContent = text
}
let replaying = false
const conversation = new Conversation(at('messages'), say)

// Whoever scrolls up reads there; whoever comes back to the end follows again.
let following = true
let scrolled = 0
page.conversation.addEventListener('scroll', () => {
    const { scrollTop, clientHeight, scrollHeight } = page.conversation
    if (scrollHeight - scrollTop - clientHeight < 48) following = true
    else if (scrollTop < scrolled) following = false
    scrolled = scrollTop
})
// A phone's keyboard, a turned phone or a notice leave less of it, and lines break anew.
new ResizeObserver(toTheEnd).observe(page.conversation)

let drawn = 0
function toTheEnd() {
    if (drawn || !following) return
    drawn = requestAnimationFrame(() => {
        drawn = 0
        page.conversation.scrollTop = page.conversation.scrollHeight
    })
}

function draw() {
    page.welcome.hidden = !conversation.empty
    const { live } = conversation
    const stopHadFocus = document.activeElement === page.stop
    page.stop.hidden = !live
    page.send.hidden = live
    if (!live) page.stop.disabled = false
    if (stopHadFocus && !live) page.question.focus()
    toTheEnd()
}

async function watch() {
    for await (const item of threads.watch(thread, { signal: stopping.signal, onState, onSign })) {
        if (item.reset) {
            replaying = true
            conversation.clear()
            item.events.forEach((event) => conversation.apply(event))
            replaying = false
        } else {
            conversation.apply(item.event)
        }
        draw()
    }
}

async function ask(text) {
    const message = { id: unique(16), role: 'user', content: text, name: user }
    following = true
    conversation.ask(message)
    draw()
    page.send.disabled = true
    try {
        await threads.start(agent, {
            threadId: thread,
            runId: unique(16),
            state: {},
            messages: conversation.history,
            tools: [],
            context: [],
            forwardedProps: {},
        })
        notice('')
    } catch (error) {
        conversation.unask(message.id)
        page.question.value = text
        draw()
        notice(`Not sent: ${error.message}.`, 'Try again', () => at('composer').requestSubmit())
    } finally {
        page.send.disabled = false
    }
}

at('composer').addEventListener('submit', (event) => {
    event.preventDefault()
    const text = page.question.value.trim()
    if (!text || conversation.live || page.send.disabled) return
    page.question.value = ''
    typed(false)
    notice('')
    ask(text)
})
page.question.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault()
        at('composer').requestSubmit()
    }
})
for (const button of document.querySelectorAll('#suggestions button')) {
    button.addEventListener('click', () => {
        page.question.focus()
        if (!conversation.live && !page.send.disabled) ask(button.textContent)
    })
}
page.stop.addEventListener('click', async () => {
    const { run } = conversation
    if (!run) return
    page.question.focus() // the button will be gone
    page.stop.disabled = true
    try {
        await threads.cancel(agent, run.id, { thread })
    } catch (error) {
        page.stop.disabled = false
        notice(`Not stopped: ${error.message}.`)
    }
})

// Who is here, and who types.

// Each until it says so, or says nothing any more: the timer is ours, for a sign may be lost.
const typists = new Map()
function onSign({ type, name, value }) {
    if (type !== 'CUSTOM' || !value || value.user === user) return
    clearTimeout(typists.get(value.user))
    typists.delete(value.user)
    if (name === 'typing_started') {
        typists.set(value.user, setTimeout(() => {
            typists.delete(value.user)
            showTypists()
        }, TYPING))
    }
    showTypists()
}

function showTypists() {
    const names = [...typists.keys()]
    page.typing.textContent = names.length ? `${names.join(', ')} ${names.length > 1 ? 'are' : 'is'} typing…` : ''
}

let said = 0 // when we said last that we type; 0 when we do not
function typed(typing) {
    if (client?.state !== 'connected' || typing === false && !said) return
    const now = performance.now()
    if (typing && said && now - said < TYPING / 2) return
    said = typing ? now : 0
    client.rpc('typing', { thread, typing }).catch(() => {}) // the next key says it again
}
page.question.addEventListener('input', () => typed(page.question.value !== ''))

async function showPresent() {
    const subscription = client.getSubscription(threads.channel(thread))
    if (client.state !== 'connected' || !subscription) return
    try {
        const { clients } = await subscription.presence()
        const names = [...new Set(Object.values(clients).map((each) => each.user || 'Somebody'))].sort()
        if (page.present.dataset.names === names.join('\n')) return
        page.present.dataset.names = names.join('\n')
        page.present.replaceChildren(...names.map((name) => {
            const item = document.createElement('li')
            const [first, ...rest] = name
            const more = document.createElement('span') // a phone has room for letters
            more.textContent = rest.join('')
            item.append(first, more)
            return item
        }))
    } catch {
        // The next look tells.
    }
}

// What can go wrong, on purpose.

const standing = client ? '' : 'The Centrifuge SDK could not be loaded: events come over server-sent events, without typing and presence.'
function notice(text, action = '', act = undefined) {
    page.notice.hidden = !(text || standing)
    page.noticeText.textContent = text || standing
    page.noticeAction.hidden = !action
    page.noticeAction.textContent = action
    page.noticeAction.onclick = act ? () => { notice(''); act() } : null
    if (text) at('said').textContent = text
}

page.drop.addEventListener('click', () => socket?.close())
page.expire.addEventListener('click', () => post('/demo/expire', { id: credential }).catch(() => notice('The server could not be reached.')))
page.kill.addEventListener('click', () => post('/demo/kill').catch(() => notice('The server could not be reached.')))
if (!client) {
    for (const button of [page.drop, page.expire]) button.disabled = true
    notice('')
} else {
    setInterval(showPresent, PRESENT)
    client.on('connected', () => setTimeout(showPresent, 300))
}

watch().catch((error) => {
    badge('closed')
    const [action, act] = error instanceof Refused
        ? ['Begin a new one', () => { location.hash = unique(4) }] // which loads the page again
        : ['Load again', () => location.reload()]
    notice(`This conversation cannot be shown: ${error.message}.`, action, act)
})
page.question.focus()
