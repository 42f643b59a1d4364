// What a thread's events look like: questions, and runs with thoughts, steps and text.
//
// Events are applied in order; `clear` begins anew. Nothing here knows where they come from.

/** A value for people: never braces and quotes. */
export function words(value) {
    if (value === null || value === undefined) return 'nothing'
    if (Array.isArray(value)) return value.map(words).join(', ') || 'nothing'
    if (typeof value === 'object') {
        return Object.entries(value).map(([name, each]) => `${name}: ${words(each)}`).join('; ') || 'nothing'
    }
    return String(value)
}

/** A tool's name for people. */
function title(name) {
    const text = name.replaceAll(/[_-]+/g, ' ').trim()
    return text.charAt(0).toUpperCase() + text.slice(1)
}

function parsed(text) {
    try {
        return JSON.parse(text)
    } catch {
        return text
    }
}

function make(tag, className, text = '') {
    const element = document.createElement(tag)
    if (className) element.className = className
    element.textContent = text
    return element
}

export class Conversation {
    /**
     * @param list The list that messages are put into.
     * @param say Called with what is to be read aloud.
     */
    constructor(list, say) {
        this.list = list
        this.say = say
        this.pending = new Map() // questions that were sent and are in no event yet
        this.clear()
    }

    clear() {
        this.list.replaceChildren()
        this.questions = new Set()
        this.texts = new Map() // of messages: elements that grow
        this.calls = new Map()
        this.run = null
        this.history = [] // for the next run's input
        this.events = 0
        for (const question of this.pending.values()) this.#question(question)
    }

    get live() {
        return this.run !== null
    }

    get empty() {
        return this.list.childElementCount === 0
    }

    /** Show a question before the server has it. */
    ask(message) {
        this.pending.set(message.id, message)
        this.#question(message)
    }

    /** Take a question back that could not be sent. */
    unask(id) {
        this.pending.delete(id)
        this.list.querySelector(`[data-id="${CSS.escape(id)}"]`)?.remove()
        this.questions.delete(id)
        this.history = this.history.filter((each) => each.id !== id)
    }

    apply(event) {
        this.events += 1
        const take = HANDLERS[event.type]
        if (take) take.call(this, event)
    }

    #question(message) {
        if (this.questions.has(message.id)) return
        this.questions.add(message.id)
        const { content } = message
        const text = typeof content === 'string' ? content : content.map((part) => part.text ?? '').join(' ')
        const item = make('li', 'user')
        item.dataset.id = message.id
        item.append(make('p', 'who', message.name ?? 'Somebody'), make('p', 'text', text))
        this.list.append(item)
        this.history.push({ id: message.id, role: 'user', content: text, ...(message.name ? { name: message.name } : {}) })
    }

    messages(list) {
        for (const message of list) {
            this.pending.delete(message.id)
            if (message.role === 'user') this.#question(message)
        }
    }

    begin(event) {
        this.messages(event.input?.messages ?? [])
        const item = make('li', 'run')
        item.append(make('p', 'who', 'Agent'), make('p', 'end'))
        item.dataset.run = event.runId
        this.list.append(item)
        this.run = { id: event.runId, item, end: item.lastChild }
        this.say('The agent has begun')
    }

    part(element) {
        if (this.run) this.run.end.before(element)
        else this.list.append(element) // from a thread that is cut off at its start
        return element
    }

    grow(id, delta) {
        const growing = this.texts.get(id)
        if (!growing) return
        growing.text += delta
        growing.node.appendData(delta)
    }

    growing(id, box, element) {
        const node = document.createTextNode('')
        element.append(node)
        box.classList.add('streaming')
        this.texts.set(id, { text: '', node, box })
    }

    settle(id) {
        const growing = this.texts.get(id)
        growing?.box.classList.remove('streaming')
        return growing?.text ?? ''
    }

    finish(state, text) {
        const { run } = this
        if (!run) return
        for (const each of run.item.querySelectorAll('.streaming')) each.classList.remove('streaming')
        for (const step of run.item.querySelectorAll('.step:not([data-state=done])')) {
            step.dataset.state = 'broken'
            step.querySelector('.state').textContent = 'not finished'
        }
        run.item.dataset.state = state
        run.end.dataset.state = state
        run.end.textContent = text
        this.run = null
        this.say(text || 'The answer is complete')
    }
}

const HANDLERS = {
    RUN_STARTED(event) {
        this.begin(event)
    },
    MESSAGES_SNAPSHOT({ messages }) {
        this.messages(messages)
    },
    REASONING_MESSAGE_START({ messageId }) {
        const box = make('details', 'thought')
        box.open = true
        const text = make('p', 'text')
        box.append(make('summary', '', 'Thoughts'), text)
        this.part(box)
        this.growing(messageId, box, text)
    },
    REASONING_MESSAGE_CONTENT({ messageId, delta }) {
        this.grow(messageId, delta)
    },
    REASONING_MESSAGE_END({ messageId }) {
        this.settle(messageId)
    },
    TEXT_MESSAGE_START({ messageId, role }) {
        const box = make('div', 'answer')
        const text = make('p', 'text')
        box.append(text)
        this.part(box)
        this.growing(messageId, box, text)
        this.texts.get(messageId).role = role ?? 'assistant'
    },
    TEXT_MESSAGE_CONTENT({ messageId, delta }) {
        this.grow(messageId, delta)
    },
    TEXT_MESSAGE_END({ messageId }) {
        const content = this.settle(messageId)
        this.history.push({ id: messageId, role: 'assistant', content })
    },
    TOOL_CALL_START({ toolCallId, toolCallName }) {
        const box = make('section', 'step')
        box.dataset.state = 'called'
        const name = make('p', 'name')
        name.append(make('span', '', title(toolCallName)), make('span', 'state', 'asking'))
        const list = make('dl')
        const given = make('dd', 'given', '…')
        const result = make('dd', 'result', '…')
        list.append(make('dt', '', 'Asked'), given, make('dt', '', 'Got'), result)
        box.append(name, list)
        box.ariaLabel = `Tool: ${title(toolCallName)}`
        this.part(box)
        this.calls.set(toolCallId, { box, given, result, text: '' })
        this.say(`The agent uses a tool: ${title(toolCallName)}`)
    },
    TOOL_CALL_ARGS({ toolCallId, delta }) {
        const call = this.calls.get(toolCallId)
        if (call) call.text += delta
    },
    TOOL_CALL_END({ toolCallId }) {
        const call = this.calls.get(toolCallId)
        if (!call) return
        call.given.textContent = words(parsed(call.text || '{}'))
        call.box.querySelector('.state').textContent = 'running'
    },
    TOOL_CALL_RESULT({ toolCallId, content }) {
        const call = this.calls.get(toolCallId)
        if (!call) return
        const text = typeof content === 'string' ? parsed(content) : content.map((part) => part.text ?? '').join(' ')
        call.result.textContent = words(text)
        call.box.dataset.state = 'done'
        call.box.querySelector('.state').textContent = 'done'
    },
    RUN_FINISHED({ outcome }) {
        this.finish(
            outcome?.type === 'cancelled' ? 'stopped' : 'finished',
            outcome?.type === 'cancelled' ? 'Stopped' : '',
        )
    },
    RUN_ERROR({ message, code }) {
        const text = code === 'agent_lost' ? 'The agent was lost. What it had written is kept.' : `The agent failed: ${message}`
        this.finish('failed', text)
    },
}
